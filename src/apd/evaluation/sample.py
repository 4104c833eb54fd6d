"""Choose how many images are evaluated: as many as asked for, else as many as take minutes on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields

from apd.data.dataset import Decoded, ImageSet
from apd.evaluation.checks import CHECK_PASSES, CHECKED
from apd.evaluation.forecast import LARGEST_BATCH, Measured, measure
from apd.evaluation.frozen import Subject
from apd.evaluation.samples import Samples
from apd.evaluation.settings import EvaluationSettings
from apd.evaluation.store import Store
from apd.util.messages import by_command
from apd.util.progress import pretty_seconds

SECONDS = 240.0
"""What an evaluation may take where no limit is set, the zero-shot control and health checks included."""
RUNGS = (20, 50, 100, 200, 500, 1000)
"""Sample sizes to choose from, besides all images."""
STRONGEST = "autoattack"


@dataclass(frozen=True)
class Sample:
    """How many images are evaluated, and how long that was expected to take.

    Args:
        n: images to evaluate.
        total: images of the split.
        seconds: expected for these; None if nothing was predicted.
        all_seconds: expected for all images under the same attacks.
        strong_seconds: expected for these under AutoAttack.
    """

    n: int
    total: int
    seconds: float | None = None
    all_seconds: float | None = None
    strong_seconds: float | None = None

    def describe(self, split: str, attacks: Sequence[str]) -> str:
        """Say what is evaluated, and how to have more."""
        whole = self.n == self.total
        of = (
            f"all {self.total} {split} images" if whole else f"{self.n} of {self.total} {split} images, a random sample"
        )
        if self.seconds is None or self.all_seconds is None:
            return of
        lines = [f"{of}, about {pretty_seconds(self.seconds)}"]
        if attacks:
            lines[0] += f", attacked by {', '.join(attacks)}"
        if not whole:
            option = by_command("--limit all", 'limit="all"')
            lines.append(f"  all images: {option} (about {pretty_seconds(self.all_seconds)})")
        if attacks and STRONGEST not in attacks and self.strong_seconds is not None:
            seconds = pretty_seconds(self.strong_seconds)
            option = by_command(f"--strong --limit {self.n}", f'attacks="{STRONGEST}", limit={self.n}')
            lines.append(f"  AutoAttack, the standard: {option} (about {seconds})")
        return "\n".join(lines)


_FIELDS = frozenset(field.name for field in fields(Sample))
"""What is read of a kept choice; earlier versions kept more."""


def choose_sample(
    images: ImageSet,
    decode: Callable[[ImageSet], Decoded],
    subjects: Sequence[Subject],
    settings: EvaluationSettings,
    store: Store,
    n_classes: int,
) -> tuple[Sample, Sequence[Measured | None]]:
    """Choose the number of images; a choice that was made before, and kept in the store, is made again.

    Args:
        images: all images of the split.
        decode: returns images in the form in which they are evaluated.
        subjects: the models that are evaluated on them, the one in question first.
        settings: with the ``limit`` that was asked for.
        store: keeps the choice.
        n_classes: number of classes.

    Returns:
        The sample, and each model's pace where it had to be measured.
    """
    total, nothing = len(images), [None] * len(subjects)
    if settings.limit != "auto":
        return Sample(total if settings.limit == "all" else min(settings.limit, total), total), nothing
    circumstances = _circumstances(images, subjects[0], settings)
    if (known := store.load(circumstances)) is not None:
        return Sample(**{name: value for name, value in known.items() if name in _FIELDS}), nothing
    few = Samples(decode(images.sample(LARGEST_BATCH, settings.seed)))
    measured = [measure(subject, few, settings) for subject in subjects]

    def seconds(n: int, attacks: Sequence[str]) -> float:
        checks = min(n, CHECKED) * CHECK_PASSES * measured[0].seconds if settings.checks else 0.0
        return checks + sum(one.expected_seconds(n, attacks, n_classes) for one in measured)

    named = settings.adversarial
    sizes = [rung for rung in RUNGS if rung < total] + [total]
    n = max((size for size in sizes if seconds(size, named) <= SECONDS), default=sizes[0])
    sample = Sample(n, total, seconds(n, named), seconds(total, named), seconds(n, [STRONGEST]))
    store.save(circumstances, asdict(sample))
    return sample, measured


def _circumstances(images: ImageSet, subject: Subject, settings: EvaluationSettings) -> dict[str, str]:
    """What a choice is kept under: the same call makes the same choice again."""
    names = ("attacks", "eps", "norm", "seed", "split", "classes", "corruption")
    ids = hashlib.sha256("\n".join(images.ids).encode(errors="surrogateescape")).hexdigest()
    asked = {name: str(getattr(settings, name)) for name in names}
    return {"attack": "sample", "model": subject.fingerprint, "images": ids, **asked}
