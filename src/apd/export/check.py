"""Whether an export gives the logits of the original, on the run's own images where they are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from apd.data.dataset import Decoded
from apd.errors import ApdError, InputError
from apd.evaluation.frozen import Subject
from apd.export.base import Runner
from apd.models.classifier import PromptedCLIP
from apd.runs.folder import Run
from apd.util.messages import get_logger
from apd.util.progress import counted
from apd.util.text import one_line

log = get_logger("apd.export")

TOLERANCE = 1e-4
"""Largest difference of logits that rounding may make in float32."""
BATCH_SIZES = (1, 7, 64)
"""Images at a time: one, an odd number and many, since a graph may have fixed the number it was made with."""


@dataclass(frozen=True)
class CheckImages:
    """Images to compare on.

    Args:
        pixels: (N,3,S,S) float32 in [0,1].
        about: how many there are, and where they come from.
    """

    pixels: Tensor
    about: str


@dataclass(frozen=True)
class Agreement:
    """How far two classifiers agree: the largest difference of logits, and the share of images of the same class in percent."""

    max_difference: float
    same_class: float


def find_images(run: Run, classifier: PromptedCLIP, n: int) -> Decoded | None:
    """Decode up to ``n`` labelled images of a run, of its test split where it has one; None, and a message, for none."""
    config = run.config
    try:
        data = config.data.for_evaluation().load(config.train.seed)
        split = next((some for some in (data.test, data.val, data.train) if len(some)), None)
        if split is None:
            raise InputError(f"{data.name} has no images with labels.")
        decoded = split.sample(n).decode(classifier.encoder.info.preprocessing, skip_bad=True, progress=True)
    except InputError as error:
        log.info(f"The images of the run are not found ({one_line(error, 200)}).")
        return None
    return decoded if len(decoded) else None


def choose_images(run: Run, classifier: PromptedCLIP, n: int) -> CheckImages:
    """Take ``n`` images: the run's own as far as there are any, and random pixels for the rest."""
    found = find_images(run, classifier, n)
    own = torch.empty(0) if found is None else found.pixels()
    side = classifier.encoder.info.image_size
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(n - len(own), 3, side, side, generator=generator)
    parts = [f"{counted(len(own), 'image')} of {run.manifest['data']['name']}"] if len(own) else []
    parts += [f"{counted(len(noise), 'random image')}"] if len(noise) else []
    return CheckImages(torch.cat([own, noise]) if len(own) else noise, " and ".join(parts))


def compare(classifier: PromptedCLIP, exported: Sequence[Runner], pixels: Tensor, tolerance: float | None) -> Agreement:
    """Compare logits at all `BATCH_SIZES`.

    Args:
        classifier: the original.
        exported: the model that was loaded from the files, in each way in which it can be.
        pixels: (N,3,S,S) in [0,1].
        tolerance: largest difference; None: it is only measured.

    Raises:
        ApdError: a difference beyond ``tolerance``, or logits that are not finite.
    """
    original = Subject.of(classifier)
    with original.fixed():
        wanted = torch.cat([original.logits(some) for some in torch.split(pixels, max(BATCH_SIZES))])
    worst, same = 0.0, 100.0
    for model, size in product(exported, BATCH_SIZES):
        got = run_in_batches(model, pixels, size)
        if got.shape != wanted.shape or not bool(got.isfinite().all()):
            raise ApdError(f"The exported model gives no finite logits of shape {tuple(wanted.shape)} at batch {size}.")
        worst = max(worst, float((got - wanted).abs().max()))
        same = min(same, 100 * float((got.argmax(-1) == wanted.argmax(-1)).double().mean()))
    if tolerance is not None and worst > tolerance:
        raise ApdError(
            f"The exported model gives other logits: the largest difference is {worst:.2g}, above {tolerance:g}. Nothing was "
            "written."
        )
    return Agreement(worst, round(same, 2))


def run_in_batches(model: Runner, pixels: Tensor, size: int) -> Tensor:
    """Logits (N,C) of pixels (N,3,S,S), ``size`` images at a time."""
    with torch.no_grad():
        parts: Sequence[Tensor] = [model(some) for some in torch.split(pixels, size)]
    return torch.cat([part.detach().float() for part in parts])
