"""A linear probe as teacher: logistic regression on a clean CLIP's image features of the labelled images.

It judges images by what the labels say of this CLIP's features, where class names say little (a domain that zero-shot CLIP
hardly knows). The penalty leaves its soft labels as soft as few images warrant: prompts tuned on the same images come out
certain of what they got wrong, and their soft labels are then hard ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.models.fast.kernels import without_autocast

PENALTY = 0.1
"""Weight of the squared weights; chosen on training images that are neither shots nor test images (docs/method.md)."""
_STEPS = 500


def fit_probe(features: Tensor, labels: Tensor, classes: int, penalty: float = PENALTY) -> Tensor:
    """Fit a linear probe without a bias (Radford 2021), by L-BFGS to the minimum of a convex objective.

    It minimises ``sum_i CE(f_i W, y_i) + penalty / 2 * ||W||^2``: scikit-learn's logistic regression with
    ``C = 1 / penalty`` and no intercept. The same images give the same weights.

    Args:
        features: (N, D) of unit length.
        labels: (N,) int64.
        classes: how many there are.
        penalty: above 0.

    Returns:
        The weights (D, classes).
    """
    weights = features.new_zeros(features.shape[1], classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=_STEPS, tolerance_grad=1e-5, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weights, labels, reduction="sum") + penalty / 2 * weights.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad(), without_autocast(features.device.type):
        optimizer.step(objective)  # type: ignore[no-untyped-call]
    return weights.detach()


def probe_logits(features: Tensor, weights: Tensor) -> Tensor:
    """Return a probe's logits (B, C) of features (B, D) of unit length."""
    with without_autocast(features.device.type):
        return features @ weights
