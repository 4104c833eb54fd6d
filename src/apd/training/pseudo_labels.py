"""Pseudo-labels: the class that a clean teacher gives to images without a label (UAT, Uesato 2019; RST, Carmon 2019).

Methods whose loss needs a label learn from unlabelled images by these. The teacher is one of those among which APD chooses
its own, by the same rule (`apd.methods.teachers`), so that all methods can be taught by the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from apd.methods import Method, Preparation
from apd.methods.base import prompted
from apd.methods.probe import fit_probe, probe_logits
from apd.methods.teachers import PARTS, choose, mean_logits, per_image, predictions, tune_prompts, used
from apd.models.prompts import PromptSpec
from apd.settings.train import ChosenTeacher
from apd.training.batches import TrainingImages


def pseudo_labels(
    method: Method, before: Preparation, images: TrainingImages, teacher: ChosenTeacher
) -> tuple[Tensor, str]:
    """Return the most probable class (U,) int64 of each unlabelled image, and who gave them, such as ``tuned+probe``.

    Args:
        method: whose CLIP, classes and templates the teacher has.
        before: tunes the teacher, on the labelled images.
        images: the unlabelled ones among them are labelled, not augmented.
        teacher: the candidates, as in ``method.teacher`` of APD.
    """
    assert images.unlabelled is not None
    bound = method.labeller().bind_detached()
    if not len(images.train):
        return predictions(bound.logits, images.unlabelled), "frozen"
    spec = PromptSpec().fitting(method.labeller().encoder.info)
    tunable = spec.text_tokens or spec.visual_tokens
    parts = [part for part in PARTS[teacher] if tunable or part != "tuned"]
    known = {"frozen": bound.logits_from_features}
    if "probe" in parts:
        features = per_image(bound.features, before.images)
        weights = fit_probe(features, before.images.labels, len(method.student.class_names))
        known["probe"] = lambda features: probe_logits(features, weights)
    if "tuned" in parts:
        prompts = prompted(method.labeller(), spec, before.seed + 1).to(images.unlabelled.labels.device)
        tune_prompts(prompts, before)
        tuned = prompts.bind_detached()

    def logits(x: Tensor, parts: Sequence[str]) -> list[Tensor]:
        features = bound.features(x)
        return [tuned.logits(x) if part == "tuned" else known[part](features) for part in parts]

    on_validation = per_image(lambda x: torch.stack(logits(x, parts), dim=1), images.val)
    shares, _ = choose(on_validation.unbind(dim=1), images.val.labels)
    chosen = used(parts, shares)
    by = torch.full((len(chosen),), 1 / len(chosen), device=on_validation.device)
    return predictions(lambda x: mean_logits(logits(x, chosen), by), images.unlabelled), "+".join(chosen)


def judged_by_teacher(method: Method, images: TrainingImages) -> TrainingImages:
    """Return the images with the frozen teacher's most probable classes as labels of those for validation."""
    known = predictions(method.labeller().bind_detached().logits, images.val)
    return replace(images, val=replace(images.val, labels=known))
