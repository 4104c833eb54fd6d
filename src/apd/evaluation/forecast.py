"""Measure the pace of a model on this machine, and predict from it how long attacks take.

A few images are classified and attacked by PGD-10: that tells how long a pass of the model takes, how many images are
right, and how many of them withstand a cheap attack, which are those that the expensive parts of an attack get.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch

from apd import attacks
from apd.attacks import cross_entropy
from apd.evaluation.frozen import Subject
from apd.evaluation.samples import Samples
from apd.evaluation.settings import EvaluationSettings
from apd.util.memory import is_out_of_memory
from apd.util.seeds import shuffled

LARGEST_BATCH = 128
"""Images at a time, where nobody says how many and they are quick enough."""
KEPT_EVERY = 60.0
"""Seconds that one part of an attack may take on a batch, since outcomes are kept when it ends."""
_SMALLEST = 8
_ENOUGH = 0.1
"""Seconds of a pass that are long enough to be measured."""
_PASSES = 5
"""Passes, at most, that short ones are measured by."""
_CHEAP = "pgd-10"


@dataclass(frozen=True)
class Measured:
    """What is known of a model on this machine.

    A pass of a batch of B images takes ``overhead + seconds * B``; one with a gradient counts twice.

    Args:
        overhead: seconds.
        seconds: seconds per image.
        right: share of images that are classified rightly.
        robust: share of those that withstand PGD-10; never quite 0, since it is of a few images.
        size: images that were measured at a time.
    """

    overhead: float
    seconds: float
    right: float
    robust: float
    size: int = LARGEST_BATCH

    def expected_seconds(self, n: int, names: Sequence[str], n_classes: int) -> float:
        """Expected seconds of ``n`` images without an attack and under each of these."""
        total = n * self.seconds
        for name in names:
            size = min(self.batch_size(name, n_classes), n)
            total += self.right * n / size * sum(self._part_seconds(name, n_classes, size))
        return total

    def batch_size(self, name: str, n_classes: int) -> int:
        """Images at a time so that each part of this attack ends within `KEPT_EVERY` seconds.

        Where the overhead alone is the larger share of a pass, fewer images would save no time, so it stays at that.
        """
        size = LARGEST_BATCH
        while size * self.seconds > self.overhead and max(self._part_seconds(name, n_classes, size)) > KEPT_EVERY:
            if size == 1:
                break
            size //= 2
        return size

    def _part_seconds(self, name: str, n_classes: int, size: int) -> list[float]:
        """Expected seconds of each part on a batch; all but the first get what withstood PGD-10."""
        passes = (1,) if name == "clean" else attacks.find(name).part_passes(n_classes)
        images = [size] + [size * self.robust] * (len(passes) - 1)
        return [n * (self.overhead + self.seconds * left) for n, left in zip(passes, images, strict=True)]


def measure_pace(subject: Subject, samples: Samples, settings: EvaluationSettings) -> Measured:
    """Measure how long a pass takes, on some of these images, drawn by the seed, as if no image ever fell.

    Raises:
        ApdError: logits that are not finite.
    """
    attacked = settings.needs_gradient and settings.threat.eps > 0
    drawn = shuffled(samples.decoded.ids, settings.seed, "measure")
    with subject.fixed():
        _seconds(subject, samples, drawn[:1], attacked)  # the first pass sets things up
        one = several = _seconds(subject, samples, drawn[:1], attacked)
        size = 1
        while several < _ENOUGH and size < min(LARGEST_BATCH, len(drawn)):
            larger = min(max(_SMALLEST, 4 * size), len(drawn))
            try:
                several = _seconds(subject, samples, drawn[:larger], attacked)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                break
            size = larger
        per_image = max(several - one, 0.5 * several) / max(size - 1, 1)
    return Measured(max(one - per_image, 0.0), per_image, right=1.0, robust=1.0, size=size)


def measure(subject: Subject, samples: Samples, settings: EvaluationSettings) -> Measured:
    """Measure the pace, and which images are right and withstand PGD-10; some 20 passes on up to 128 images.

    Raises:
        ApdError: logits that are not finite.
    """
    pace = measure_pace(subject, samples, settings)
    drawn = shuffled(samples.decoded.ids, settings.seed, "measure")[: pace.size]
    with subject.fixed():
        x, labels, ids = samples.batch(drawn, subject.device)
        right = subject.predict(x) == labels
        n, robust = int(right.sum()), 1.0
        if n and settings.needs_gradient and settings.threat.eps > 0:
            known = attacks.AttackBatch(x, labels, ids, settings.seed).select(right.nonzero().flatten())
            found = attacks.find(_CHEAP)(subject.model, known, settings.threat)
            robust = (int((subject.predict(found.images) == labels[right]).sum()) + 1) / (n + 1)
    return replace(pace, right=n / len(x), robust=robust)


def _seconds(subject: Subject, samples: Samples, index: Sequence[int], attacked: bool) -> float:
    """Seconds of a pass, from a pass without a gradient and, where the model is attacked, one with it."""
    x, labels, _ = samples.batch(index, subject.device)
    x.requires_grad_(attacked)
    found: list[float] = []
    while sum(found) < _ENOUGH and len(found) < _PASSES:
        started = time.perf_counter()
        subject.predict(x).tolist()
        if attacked:
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(cross_entropy(subject.model(x), labels).sum(), x)
            float(gradient.sum())  # waits for the device
        found.append(time.perf_counter() - started)
    # The mean, not the quickest: where others use the machine too, an attack waits for them as often as these passes do.
    return fmean(found) / (3 if attacked else 1)
