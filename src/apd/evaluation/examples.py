"""What an attack does to a few images under one classifier, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apd.attacks import AttackBatch, ThreatModel
from apd.evaluation.settings import find_within
from apd.models.classifier import PromptedCLIP


@dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack did to some images under one classifier.

    Args:
        title: the classifier's name.
        images: (N,3,S,S) in [0,1], adversarial.
        before: (N,C) logits of the clean images.
        after: (N,C) logits of the adversarial ones.
    """

    title: str
    images: Tensor
    before: Tensor
    after: Tensor


def attacked(
    title: str,
    classifier: PromptedCLIP,
    x: Tensor,
    labels: Tensor,
    ids: Sequence[str],
    threat: ThreatModel,
    seed: int = 0,
    attack: str = "pgd-20",
) -> Attacked:
    """Attack some images, each classifier by its own gradients.

    Images that are misclassified without an attack stay as they are.

    Args:
        title: the classifier's name.
        classifier: the model, prompts included.
        x: (N,3,S,S) in [0,1], clean.
        labels: (N,) right classes.
        ids: one per image; with ``seed`` they decide what is random.
        threat: what the attack may change.
        seed: seed of the attack.
        attack: an evaluation attack by name.
    """
    model = classifier.frozen()
    with torch.no_grad():
        before = model(x)
    found = x.clone()
    right = (before.argmax(dim=-1) == labels).nonzero().flatten()
    if len(right):
        batch = AttackBatch(x, labels, ids, seed).select(right)
        made = find_within(attack, threat.norm)
        found[right] = made.checked(made(model, batch.copy(), threat), batch, threat).images
    with torch.no_grad():
        return Attacked(title, found, before, model(found))


def amplified(change: Tensor) -> tuple[Tensor, float]:
    """A perturbation (3,S,S) made visible: grey means unchanged, the largest change fills the range.

    Returns:
        The picture (3,S,S) in [0,1], and by how much the change is amplified.
    """
    factor = 0.5 / float(change.abs().max().clamp(min=1e-6))
    return 0.5 + change * factor, factor
