"""Steps that look for flat minima: the gradient is taken at the worst prompts nearby, the step where the prompts are.

Both methods follow one ascent step of the outer loss on the same adversarial images, and differ in how far it goes::

    SAM  v   = rho * g / ||g||, over all prompts together                 (Foret 2021, arXiv 2010.01412, eq. 2)
    AWP  v_l = gamma * ||p_l|| * g_l / ||g_l||, for each tensor by itself (Wu 2020, arXiv 2004.05884, eq. 10)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def sam(parameters: Sequence[nn.Parameter], rho: float) -> list[Tensor]:
    """The shift of each tensor by SAM; ``rho`` is the length of all shifts together."""
    gradients = _gradients(parameters)
    length = torch.stack([g.norm() for g in gradients]).norm().clamp_min(1e-12)
    return [rho * g / length for g in gradients]


def awp(parameters: Sequence[nn.Parameter], gamma: float) -> list[Tensor]:
    """The shift of each tensor by adversarial weight perturbation; ``gamma`` is its length relative to the tensor's."""
    pairs = zip(parameters, _gradients(parameters), strict=True)
    return [gamma * p.detach().norm() * g / g.norm().clamp_min(1e-12) for p, g in pairs]


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


@contextmanager
def shifted(parameters: Sequence[nn.Parameter], by: Sequence[Tensor]) -> Iterator[None]:
    """Move the parameters for the time of the block; then they are what they were, to the last bit."""
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, v in zip(parameters, by, strict=True):
            p.add_(v)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, before, strict=True):
                p.copy_(old)
