"""What attacks may ask for besides the model under attack: other classifiers, validation images, class names."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apd.attacks import AttackBatch, Source, Surroundings
from apd.data.dataset import Dataset, Decoded, ImageSet
from apd.data.settings import Split
from apd.errors import InputError
from apd.evaluation import classifiers
from apd.evaluation.frozen import Subject
from apd.evaluation.inputs import serving
from apd.evaluation.samples import Samples
from apd.evaluation.settings import EvaluationSettings
from apd.models.classifier import PromptedCLIP
from apd.runs.load import is_run, load_run

MOST = 512
"""Validation images that an attack learns from, at most."""
ZERO_SHOT = "zero-shot"


class Resized(nn.Module):
    """A classifier of images of another size, which it resizes first."""

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B,C) of images (B,3,H,W)."""
        resized = F.interpolate(x, size=(self.size, self.size), mode="bicubic", antialias=True, align_corners=False)
        logits: Tensor = self.model(resized.clamp(0, 1))
        return logits


def surroundings_of(
    zero_shot: PromptedCLIP | None,
    data: Dataset,
    decode: Callable[[ImageSet], Decoded],
    device: torch.device,
    image_size: int,
    settings: EvaluationSettings,
) -> Surroundings:
    """Return what attacks on one classifier may ask for; each is loaded when it is first asked for.

    Args:
        zero_shot: the control, or the classifier under attack without its prompts; None: there is none.
        data: its images and classes.
        decode: returns images in the form in which they are evaluated.
        device: where the classifier is.
        image_size: side of the images under attack, in pixels.
        settings: with the split under attack, which is never the one that an attack learns from.
    """

    @cache
    def source(spec: str) -> Source:
        found = _load(spec, zero_shot, data, device)
        subject, size = Subject.of(found), found.encoder.info.image_size
        model = subject.model.eval().requires_grad_(False)
        return Source(model if size == image_size else Resized(model, size), subject.fingerprint)

    @cache
    def validation() -> AttackBatch:
        split: Split = "train" if settings.split == "val" else "val"
        images = data.split(split)
        if len(images) == 0:
            raise InputError(
                f"{data.name} has no {split} images, from which a universal perturbation could be learned."
            )
        samples = Samples(decode(images.sample(MOST, settings.seed)))
        x, labels, ids = samples.batch(range(len(samples)), device)
        return AttackBatch(x, labels, ids, settings.seed)

    return Surroundings(data.class_names, source, validation, zero_shot is not None)


def _load(spec: str, zero_shot: PromptedCLIP | None, data: Dataset, device: torch.device) -> PromptedCLIP:
    """Load another classifier for the same classes.

    Raises:
        InputError: there is no zero-shot CLIP; neither a run folder nor a CLIP model.
    """
    if spec == ZERO_SHOT:
        if zero_shot is None:
            raise InputError(
                "transfer:zero-shot: this classifier has no zero-shot CLIP; give the CLIP model or the run that images are "
                "made on: transfer:MODEL."
            )
        return zero_shot
    if is_run(spec):
        return serving(data, load_run(spec, device=device))
    return classifiers.zero_shot(spec, data, device)
