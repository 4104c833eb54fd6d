"""Which clean teacher serves: the hand-written prompt, prompts tuned on the labelled images, or the mean of both.

The rule: the one whose soft labels have the lowest cross-entropy on the validation images, which neither has seen. Where
zero-shot CLIP knows nothing of a domain that is the tuned one; where a few images teach it less than it knew, the frozen
one. Cross-entropy, not accuracy: it judges the soft labels, which are what is taught, and scatters less on few images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.models.classifier import PromptedCLIP

if TYPE_CHECKING:
    from apd.data.dataset import Decoded

FROZEN, TUNED, MEAN = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)
"""Shares of the frozen and of the tuned teacher's probabilities in the soft label."""
_BATCH = 256


def mean_logits(frozen: Tensor, tuned: Tensor, shares: Tensor) -> Tensor:
    """Return logits (B, C) whose softmax is the mean, by these shares (2,), of the softmax of both (B, C)."""
    both = torch.stack([frozen, tuned]).log_softmax(dim=-1)
    return torch.logsumexp(both + shares.log()[:, None, None], dim=0)


def logits_of(classifier: PromptedCLIP, images: Decoded) -> Tensor:
    """Return the logits (N, C) of images that are not augmented."""
    bound, device = classifier.bind_detached(), images.labels.device
    with torch.no_grad():
        parts = torch.split(torch.arange(len(images), device=device), _BATCH)
        return torch.cat([bound.logits(images.pixels(index)) for index in parts])


def choose(frozen: Tensor, tuned: Tensor, labels: Tensor) -> tuple[tuple[float, float], float]:
    """Choose by the rule at the head of this page.

    Args:
        frozen: logits (N, C) of the hand-written prompt on validation images.
        tuned: logits (N, C) of tuned prompts.
        labels: (N,).

    Returns:
        The shares, and the chosen teacher's accuracy on these images, in [0,1].
    """
    found: dict[tuple[float, float], Tensor] = {}
    for shares in (FROZEN, TUNED, MEAN):
        found[shares] = mean_logits(frozen, tuned, torch.tensor(shares, device=labels.device))
    best = min(found, key=lambda shares: float(F.cross_entropy(found[shares], labels)))
    return best, float((found[best].argmax(dim=-1) == labels).float().mean())
