"""Measure the pace of a model on this machine, and foretell from it how long attacks take.

A few images are classified and attacked by PGD-10: that tells how long a pass of the model takes, how many images are
right, and how many of them withstand a cheap attack, which are those that the expensive parts of an attack go on with.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from apd import attacks
from apd.attacks import cross_entropy
from apd.data.dataset import shuffled
from apd.evaluation.frozen import Subject
from apd.evaluation.samples import Samples
from apd.evaluation.settings import EvaluationSettings

LARGEST = 128
"""Images at a time, where nobody says how many and they are quick enough."""
KEPT_EVERY = 60.0
"""Seconds that one part of an attack may take on a batch, since outcomes are kept when it ends."""
_SMALLEST = 8
_ENOUGH = 0.25
"""Seconds of a pass that are long enough to be measured."""
_CHEAP = "pgd-10"


@dataclass(frozen=True)
class Measured:
    """What is known of a model on this machine.

    Args:
        seconds: of one pass of the model, per image; one with a gradient counts twice.
        right: share of images that are classified rightly.
        robust: share of those that withstand PGD-10; never quite 0, since it is of a few images.
    """

    seconds: float
    right: float
    robust: float

    def seconds_per_image(self, names: Sequence[str], n_classes: int) -> float:
        """Expected seconds for an image under all of these attacks, and without one."""
        passes = 1.0
        for name in names:
            first, *others = attacks.find(name).part_passes(n_classes)
            passes += self.right * (first + self.robust * sum(others))
        return self.seconds * passes

    def batch_size(self, name: str, n_classes: int) -> int:
        """Images at a time so that each part of this attack ends within `KEPT_EVERY` seconds, where one image does."""
        first, *others = (1,) if name == "clean" else attacks.find(name).part_passes(n_classes)
        longest = self.seconds * max(first, self.robust * max(others, default=0))
        size = LARGEST
        while size > 1 and size * longest > KEPT_EVERY:
            size //= 2
        return size


def measure(subject: Subject, samples: Samples, settings: EvaluationSettings) -> Measured:
    """Measure a model on some of these images, drawn by the seed; takes the time of some 20 passes on up to 128 images.

    Raises:
        ApdError: logits that are not finite.
    """
    attacked = bool(settings.adversarial) and settings.threat.eps > 0
    drawn = shuffled(samples.decoded.ids, settings.seed, "measure")
    with subject.fixed():
        _seconds_per_image(subject, samples, drawn[:1], attacked)  # the first pass sets things up
        size = _SMALLEST
        while (seconds := _seconds_per_image(subject, samples, drawn[:size], attacked)) * size < _ENOUGH:
            if size >= min(LARGEST, len(drawn)):
                break
            size *= 4
        x, labels, ids = samples.batch(drawn[:size], subject.device)
        right = subject.predict(x) == labels
        n, robust = int(right.sum()), 1.0
        if n and attacked:
            known = [id_ for id_, ok in zip(ids, right.tolist(), strict=True) if ok]
            cheap = attacks.find(_CHEAP)
            found = cheap(subject.model, x[right], labels[right], settings.threat, known, settings.seed)
            robust = (int((subject.predict(found.images) == labels[right]).sum()) + 1) / (n + 1)
    return Measured(seconds, n / len(x), robust)


def _seconds_per_image(subject: Subject, samples: Samples, index: Sequence[int], attacked: bool) -> float:
    """Seconds of a pass per image, from a pass without a gradient and, where the model is attacked, one with it."""
    x, labels, _ = samples.batch(index, subject.device)
    started = time.perf_counter()
    subject.predict(x).tolist()
    if attacked:
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(subject.model(x), labels).sum(), x)
        float(gradient.sum())  # waits for the device
    return (time.perf_counter() - started) / (len(x) * (3 if attacked else 1))
