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
        labelled: (B,) bool, whose labels were given; the others have a pseudo-label, or `apd.data.dataset.UNKNOWN`. None:
            all of them.
        weight: factor of this share's mean loss, so that the processes' mean is the mean over all images.
    """

    index: Tensor
    crops: Tensor
    x: Tensor
    labels: Tensor
    seeds: Tensor
    weight: float
    labelled: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, labels: Tensor) -> Batch:
        """Make a batch of images and labels alone, seeded by their order: for tests and experiments."""
        order = torch.arange(len(x), device=x.device)
        return cls(order, order, x, labels, order, 1.0)
