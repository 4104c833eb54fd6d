"""How long it will take: estimated passes, at a pace measured in a moment or taken from runs that are finished."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import torch

from apd.bench.job import Outcome
from apd.bench.plan import Job, Source
from apd.bench.protocols import View
from apd.data import Dataset
from apd.methods import find_method
from apd.models import load_clip
from apd.models.classifier import PromptedCLIP
from apd.runs.config import validate

PASSES = {"clean": 1, "apgd-ce": 100, "apgd-dlr": 100, "apgd-ce+dlr": 200, "autoattack": 4000}
"""Forward passes with gradient to the pixels, for an image that stands; pgd-N costs N."""
STANDING = 0.4
"""Share of images that is assumed to stand attacks."""
OVERHEAD = 3.0
"""Seconds that loading data and the like take a run."""
_BATCH, _CLASSES, _PATIENCE = 16, 10, 0.5


@dataclass(frozen=True)
class Pace:
    """Seconds an image pass (forward, and gradient to the pixels) and a class's text pass take."""

    image: float
    text: float


def calibrate(model: str, device: str, threads: int) -> Pace:
    """Measure the pace, for about a second, as a worker would go."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        clip = load_clip(model, device=device)
        classifier = PromptedCLIP(clip, None, [f"class {i}" for i in range(_CLASSES)])
        frozen, size = classifier.frozen(), clip.info.image_size
        x = torch.full((_BATCH, 3, size, size), 0.5, device=device, requires_grad=True)
        image = _time(lambda: torch.autograd.grad(frozen(x).sum(), x)[0].sum().item()) / _BATCH
        with torch.no_grad():
            text = _time(lambda: classifier.class_features().sum().item()) / _CLASSES
    finally:
        torch.set_num_threads(before)
    return Pace(image, text)


def _time(once: Callable[[], object]) -> float:
    once()
    started, times = time.perf_counter(), 0
    while times == 0 or time.perf_counter() - started < _PATIENCE:
        once()
        times += 1
    return (time.perf_counter() - started) / times


def training_seconds(job: Job, pace: Pace) -> float:
    """Estimated seconds of a job's training: attack steps, the clean and the adversarial pass, class features and back."""
    method = None if job.method is None else find_method(job.method["name"])
    if method is None or not method.learns:
        return 0.0
    train = validate({"data": job.data, "method": job.method, "train": job.train}).train
    data = _data(job.sources[job.data])
    classes = len(data.class_names) if job.classes == "all" else math.ceil(len(data.class_names) / 2)
    share = classes / len(data.class_names)
    images = len(data.train) * share if job.shots == "all" else min(int(job.shots) * classes, len(data.train))
    steps = {"pgd": train.attack.steps, "free": 0, "carried": 0}.get(train.attack.kind, 1)
    passes = steps + 2 if method.adversarial else 1
    batches = math.ceil(images / train.batch_size)
    return train.epochs * (images * passes * pace.image + batches * 3 * classes * pace.text)


def view_seconds(job: Job, view: View, pace: Pace) -> float:
    """Estimated seconds of one evaluation."""
    data = _data(job.sources[view.data])
    images = len(data.split("val" if job.split == "val" else "test")) * (1 if view.classes == "all" else 0.5)
    n = images if view.limit is None else min(view.limit, images)
    return n * pace.image * (1 + STANDING * sum(_passes(attack) for attack in view.attacks))


def _passes(attack: str) -> int:
    steps = re.fullmatch(r"pgd-(\d+)", attack)
    return int(steps[1]) if steps else PASSES[attack]


@cache
def _data(source: Source) -> Dataset:
    return source.load("all", 0)


@dataclass(frozen=True)
class Forecast:
    """What runs should take, corrected by what finished ones took.

    Args:
        pace: measured.
        ratio: seconds that finished work took over what was estimated for it; 1 where nothing is finished.
    """

    pace: Pace
    ratio: float = 1.0

    @classmethod
    def of(cls, pace: Pace, jobs: Iterable[Job], outcomes: Mapping[str, Outcome]) -> Forecast:
        """Corrected by the finished ones of these jobs."""
        taken = estimated = 0.0
        for job in jobs:
            outcome = outcomes.get(job.id)
            if outcome is not None:
                known = {key: job.views[key] for key in outcome.views if key in job.views}
                taken += outcome.seconds + sum(outcome.views[key].seconds for key in known)
                estimated += training_seconds(job, pace) if outcome.seconds else 0.0
                estimated += sum(view_seconds(job, view, pace) for view in known.values())
        return cls(pace, taken / estimated if estimated else 1.0)

    def seconds(self, job: Job, outcome: Outcome | None) -> float:
        """What is left of a job."""
        missing = [view for key, view in job.views.items() if outcome is None or key not in outcome.views]
        training = training_seconds(job, self.pace) if outcome is None else 0.0
        return OVERHEAD + self.ratio * (training + sum(view_seconds(job, view, self.pace) for view in missing))
