"""One batch of training images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """One process's share of a batch.

    Args:
        index: positions of the images among all training images (B,) int64.
        crops: (B,) int64, seeds of their crops.
        x: images (B,3,S,S) in [0,1], cropped.
        labels: (B,) int64.
        seeds: (B,) int64, of the attack's start.
        weight: factor of this share's mean loss, so that the processes' mean is the mean over all images.
    """

    index: Tensor
    crops: Tensor
    x: Tensor
    labels: Tensor
    seeds: Tensor
    weight: float

    @classmethod
    def of(cls, x: Tensor, labels: Tensor) -> Batch:
        """Make a batch of images and labels alone, seeded by their order: for tests and experiments."""
        order = torch.arange(len(x), device=x.device)
        return cls(order, order, x, labels, order, 1.0)
