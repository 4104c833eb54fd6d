"""What attacks maximise: one value a sample, of outputs and a target.

``z`` are logits (B, C) with the logit scale included. Every function has the form `Objective` asks for:
``loss(outputs, target) -> (B,)``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.errors import InputError


def cross_entropy(z: Tensor, labels: Tensor) -> Tensor:
    """``-log softmax(z)[y]`` (Madry 2018, eq. 2.1). Flat where the logit scale saturates the softmax; see `margin`."""
    return F.cross_entropy(z, labels, reduction="none")


def kl(z: Tensor, target: Tensor) -> Tensor:
    """``KL(q || softmax(z))`` with target probabilities ``q`` (B, C) (TRADES, Zhang 2019, eq. 5)."""
    return F.kl_div(F.log_softmax(z, dim=-1), target, reduction="none").sum(dim=-1)


def kl_from_logits(z: Tensor, z_target: Tensor) -> Tensor:
    """``KL(softmax(z_target) || softmax(z))`` with target logits (B, C)."""
    log_target, log_p = F.log_softmax(z_target, dim=-1), F.log_softmax(z, dim=-1)
    return F.kl_div(log_p, log_target, reduction="none", log_target=True).sum(dim=-1)


def kl_of_pair(outputs: Tensor, _: Tensor) -> Tensor:
    """``KL(softmax(z_T) || softmax(z_S))`` of outputs ``[z_T, z_S]`` (B, 2C).

    Both models see the attacked image (AdaAD, Huang 2023).
    """
    z_teacher, z_student = outputs.chunk(2, dim=1)
    return kl_from_logits(z_student, z_teacher)


def margin(z: Tensor, labels: Tensor) -> Tensor:
    """``max_{i != y} z_i - z_y``, positive where the sample is fooled (Carlini 2017, f_6, not cut at 0)."""
    true = F.one_hot(labels, z.shape[-1]).bool()
    others = z.masked_fill(true, -torch.inf).amax(dim=-1)
    return others - z.gather(1, labels[:, None]).squeeze(1)


def squared_distance(features: Tensor, target: Tensor) -> Tensor:
    """``||f - t||^2`` of features (B, D), not of unit length (FARE, Schlarmann 2024, eq. 3)."""
    return (features - target).square().sum(dim=-1)


def dlr(z: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, ``margin / (z_1 - z_3)`` with the logits sorted downwards (Croce 2020, eq. 4).

    Raises:
        InputError: fewer than three classes.
    """
    if z.shape[-1] < 3:
        raise InputError(f"The dlr loss needs at least three classes, got {z.shape[-1]}; use margin.")
    top = z.topk(3, dim=-1).values
    return margin(z, labels) / (top[..., 0] - top[..., 2] + 1e-12)
