"""Pseudo-labels: the class that a clean teacher gives to images without a label (UAT, Uesato 2019; RST, Carmon 2019).

Methods whose loss needs a label learn from unlabelled images by these. The teacher is one of those among which APD chooses
its own, by the same rule (`apd.methods.teachers`), so that all methods can be taught by the same one.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from apd.data.dataset import Images
from apd.methods import Method, Preparation
from apd.methods.blended import BlendedTeacher
from apd.methods.teachers import predictions
from apd.models.prompts import PromptSpec
from apd.settings.train import ChosenTeacher
from apd.training.batches import TrainingImages


def pseudo_labels(method: Method, before: Preparation, images: Images, teacher: ChosenTeacher) -> tuple[Tensor, str]:
    """Return the most probable class (U,) int64 of each unlabelled image, and who gave them, such as ``tuned+probe``.

    Args:
        method: whose CLIP, classes and templates the teacher has.
        before: tunes the teacher, on the labelled images.
        images: without labels; not augmented.
        teacher: the candidates, as in ``method.teacher`` of APD.
    """
    # Of APD's default prompts: with a context per class where the student has one, as APD's own teacher.
    spec = PromptSpec(class_specific=method.settings.prompts.class_specific)
    blend = BlendedTeacher(teacher, method.labeller(), spec, before.seed + 1).to(images.labels.device)
    blend.fit(before)
    return predictions(blend.logits, images), "+".join(blend.used())


def judged_by_teacher(method: Method, images: TrainingImages) -> TrainingImages:
    """Return the images with the frozen teacher's most probable classes as labels of those for validation."""
    known = predictions(method.labeller().bind_detached().logits, images.val)
    return replace(images, val=replace(images.val, labels=known))
