"""Estimate run time from model passes and from a throughput that is measured or taken from finished runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from apd.attacks import find
from apd.bench.job import Outcome
from apd.bench.loaded import dataset, encoder, whole
from apd.bench.plan import Job
from apd.bench.protocols import EvalSpec
from apd.evaluation.checks import CHECK_PASSES, CHECKED
from apd.methods import find_method
from apd.models.classifier import PromptedCLIP

NOT_FOOLED = 0.4
"""Share of images that attacks are assumed not to fool; they run to the end on these only."""
OVERHEAD = 3.0
"""Seconds per run for loading data and the like."""
_BATCH, _CLASSES, _PATIENCE = 16, 10, 0.5


@dataclass(frozen=True)
class Pace:
    """Seconds per pass of an image (forward, and gradient to the pixels) and of a class's text."""

    image: float
    text: float


def calibrate(model: str, device: str, threads: int) -> Pace:
    """Measure the pace for about a second, under a worker's conditions."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        clip = encoder(model, device)
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


def attack_passes(attack: str, n_classes: int) -> float:
    """Passes with a gradient to the pixels that an evaluation attack takes on an image that it does not fool."""
    return 0.0 if attack == "clean" else sum(find(attack).part_passes(n_classes)) / 2  # which counts such a pass twice


def training_seconds(job: Job, pace: Pace) -> float:
    """Estimate a job's training: attack steps, the clean and the adversarial pass, class features and back."""
    if job.config is None:
        return 0.0
    method, train, section = find_method(job.config.method.name), job.config.train, job.config.data
    if not method.learns:
        return 0.0
    data = whole(section)
    classes = len(data.class_names) if section.classes == "all" else math.ceil(len(data.class_names) / 2)
    share = classes / len(data.class_names)
    images = len(data.train) * share if section.shots == "all" else min(section.shots * classes, len(data.train))
    images += len(dataset(section).unlabelled) if section.unlabelled else 0
    attack = train.attack.attack_class.from_settings(train.attack)
    passes = attack.passes + 2 if method.adversarial else 1
    batches = math.ceil(images / train.batch_size)
    epochs = train.steps / batches if train.steps else train.epochs
    texts = classes * job.config.method.settings.prompts.experts
    return epochs * (images * passes * pace.image + batches * 3 * texts * pace.text)


def eval_seconds(job: Job, spec: EvalSpec, pace: Pace) -> float:
    """Estimate one evaluation."""
    data, share = whole(job.data[spec.data]), 1 if spec.classes == "all" else 0.5
    images = len(data.split(job.split)) * share
    n = images if spec.limit is None else min(spec.limit, images)
    passes = sum(attack_passes(attack, math.ceil(len(data.class_names) * share)) for attack in spec.attacks)
    checks = min(n, CHECKED) * CHECK_PASSES / 2 if passes else 0.0
    return pace.image * (n * (1 + NOT_FOOLED * passes) + checks)


@dataclass(frozen=True)
class Forecast:
    """How long runs should take, corrected by how long finished ones took.

    Args:
        paces: measured, by CLIP model.
        ratio: seconds that finished work took over what was estimated for it; 1 if nothing is finished.
    """

    paces: Mapping[str, Pace]
    ratio: float = 1.0

    @classmethod
    def of(cls, paces: Mapping[str, Pace], jobs: Iterable[Job], outcomes: Mapping[str, Outcome]) -> Forecast:
        """Correct the pace by the finished ones of these jobs."""
        taken = estimated = 0.0
        for job in jobs:
            outcome = outcomes.get(job.id)
            if outcome is not None:
                pace, known = paces[job.model], {key: job.evals[key] for key in outcome.evals if key in job.evals}
                taken += outcome.seconds + sum(outcome.evals[key].seconds for key in known)
                estimated += training_seconds(job, pace) if outcome.seconds else 0.0
                estimated += sum(eval_seconds(job, spec, pace) for spec in known.values())
        return cls(paces, taken / estimated if estimated else 1.0)

    def seconds(self, job: Job, outcome: Outcome | None) -> float:
        """Estimate what is left of a job."""
        missing, pace = job.evals if outcome is None else outcome.missing(job), self.paces[job.model]
        training = training_seconds(job, pace) if outcome is None else 0.0
        return OVERHEAD + self.ratio * (training + sum(eval_seconds(job, spec, pace) for spec in missing.values()))
