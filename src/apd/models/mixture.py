"""A mixture of class features, weighted for each image by its own feature.

The form is MoAPT's (Zhao 2025, arXiv 2505.17509): several text prompts, and a router that reads their weights off the image
under attack, give each image text features of its own. The router is ours, a linear map without bias that starts at 0, so that
training starts from equal weights; so is that the mixed features are not scaled to unit length again, which makes the mixture
one of logits. Weights are a smooth function of the pixels: attacks from here or from outside go through them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """Several sets of class features, and what chooses between them.

    Args:
        sets: class features (K, C, D) of unit length.
        gate: (K, D); its products with an image feature are the logits of the weights.
    """

    sets: Tensor
    gate: Tensor

    def weights(self, features: Tensor) -> Tensor:
        """Weights (B, K), which sum to 1, of image features (B, D) of unit length."""
        return (features @ self.gate.to(features.dtype).T).softmax(dim=-1)

    def cosines(self, features: Tensor) -> Tensor:
        """Weighted mean (B, C) over the sets of the cosines with image features (B, D) of unit length."""
        each = torch.einsum("bd,kcd->bkc", features, self.sets.to(features.dtype))
        return (self.weights(features)[:, :, None] * each).sum(dim=1)

    def mean(self) -> Tensor:
        """Class features (C, D) of unit length that stand for all sets, where one per class is asked for."""
        return F.normalize(self.sets.mean(dim=0), dim=-1)

    def detach(self) -> Mixture:
        """Cut the values from the prompts' graph."""
        return Mixture(self.sets.detach(), self.gate.detach())
