"""Geometry of the L1 ball: the nearest allowed image, a random point, and a sparse step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_HALVINGS = 60
"""Enough to halve [0, 1] down to neighbouring float32 numbers, small ones included."""
_SPARSITY = 0.05
"""Share of all pixel values that a step changes."""


def project(delta: Tensor, x: Tensor, eps: float | Tensor) -> Tensor:
    """Return the nearest perturbation (B,...) of L1 norm at most ``eps`` that keeps ``x`` in [0,1].

    Clipping after a projection onto the ball alone would not find it (Croce & Hein 2021, arXiv 2103.01208): what is cut off
    by the box can be spent elsewhere. Each size becomes ``min(max(size - c, 0), room)``, with the smallest c >= 0 that fits.

    Args:
        delta: perturbations.
        x: clean images (B,...) in [0,1].
        eps: the radius, for all or per image (B, 1, ...).
    """
    flat, clean = delta.flatten(1), x.flatten(1)
    radius = eps.flatten(1) if isinstance(eps, Tensor) else torch.full_like(flat[:, :1], eps)
    size, room = flat.abs(), torch.where(flat > 0, 1 - clean, clean)
    low, high = torch.zeros_like(radius), size.amax(dim=1, keepdim=True)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        outside = _shrunk(size, room, middle).sum(dim=1, keepdim=True) > radius
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    whole = torch.minimum(size, room)
    fits = whole.sum(dim=1, keepdim=True) <= radius
    return (flat.sign() * torch.where(fits, whole, _shrunk(size, room, high))).view_as(delta)


def _shrunk(size: Tensor, room: Tensor, by: Tensor) -> Tensor:
    return torch.minimum((size - by).clamp_min(0), room)


def draw(shape: torch.Size, eps: float, generator: torch.Generator) -> Tensor:
    """Draw a point uniformly from the ball of radius ``eps``.

    Exponential sizes, divided by their sum and one more of them, are uniform in the simplex and what lies below it.
    """
    sizes = -torch.rand(math.prod(shape) + 1, generator=generator).clamp_min(1e-20).log()
    signs = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1
    return eps * signs * (sizes[1:] / sizes.sum()).view(shape)


def ascend(x_adv: Tensor, gradient: Tensor, lengths: float | Tensor, step: float) -> Tensor:
    """Take a step of L1 length ``lengths`` in equal shares on the pixel values of the largest gradients.

    The steepest step would change a single value, which soon has no room; values without room are left out.

    Args:
        x_adv: images (B,...) in [0,1].
        gradient: of what is maximised, (B,...).
        lengths: the step's length, for all or per image (B, 1, ...).
        step: the length that decides how many values change: never fewer than could take it.
    """
    has_room = torch.where(gradient > 0, x_adv < 1, x_adv > 0)
    flat = (gradient * has_room).flatten(1)
    n = flat.shape[1]
    kept = min(n, max(1, math.ceil(_SPARSITY * n), math.ceil(step)))
    smallest = flat.abs().topk(kept, dim=1).values[:, -1:]
    direction = flat.sign() * (flat.abs() >= smallest)
    direction = direction / direction.abs().sum(dim=1, keepdim=True).clamp_min(1)
    return x_adv + lengths * direction.view_as(gradient)
