"""A look at the validation images during training: clean, and under a short attack."""

from __future__ import annotations

import torch

from apd.attacks import AttackBatch, find
from apd.data.dataset import Decoded
from apd.models.classifier import FrozenClassifier
from apd.settings.train import TrainSettings
from apd.training.collapse import CollapseMonitor, Validation
from apd.util.progress import watched

VALIDATED = 256
"""Validation images at a time."""


def look(model: FrozenClassifier, val: Decoded, settings: TrainSettings, monitor: CollapseMonitor) -> Validation:
    """Count what is right, and what withstands the attack.

    Args:
        model: what would be deployed.
        val: images, and what is right for them.
        settings: the section ``train``, with the attack.
        monitor: refuses logits that are not finite.
    """
    attack, right, robust = find(settings.validation_attack), 0, 0
    counts = torch.zeros(len(model.bound.classes), device=val.images.device)
    starts = range(0, len(val), VALIDATED)
    for start in watched(starts, len(starts), "validating", "batches"):
        index = torch.arange(start, min(start + VALIDATED, len(val)), device=val.images.device)
        x, labels, ids = val.pixels(index), val.labels[index], [val.ids[i] for i in index.tolist()]
        with torch.no_grad():
            z = model(x)
        monitor.check_logits(z)
        predicted = z.argmax(dim=1)
        counts += predicted.bincount(minlength=len(counts))
        keep = (predicted == labels).nonzero().flatten()
        right += len(keep)
        if len(keep):
            found = attack(model, AttackBatch(x, labels, ids, settings.seed).select(keep), settings.threat)
            with torch.no_grad():
                robust += int((model(found.images).argmax(dim=1) == labels[keep]).sum())
    alike = float((model.bound.classes @ model.bound.classes.T).min())
    return Validation(len(val), right, robust, int(counts.max()), len(counts), alike)
