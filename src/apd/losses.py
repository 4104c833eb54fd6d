"""Objectives under their public address, for methods of other packages; they live in `apd.attacks.objectives`."""

from __future__ import annotations

from torch import Tensor

from apd.attacks.objectives import cosine_distance, kl, kl_to_probabilities, margin, squared_distance

__all__ = ["cosine_distance", "kl", "kl_per_sample", "kl_to_probabilities", "margin", "squared_distance"]


def kl_per_sample(z_target: Tensor, z: Tensor, tau: float = 1.0) -> Tensor:
    """`kl` with positional arguments: ``tau^2 * KL(softmax(z_target / tau) || softmax(z / tau))``, per sample (B,)."""
    return kl(p=z_target, q=z, tau=tau)
