"""Figures of a table and the paired differences between methods, over images, seeds and data sets."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from apd.bench.job import ViewOutcome
from apd.bench.protocols import Measure
from apd.evaluation.statistics import Difference, paired_bootstrap

Cell = Mapping[str, ViewOutcome]
"""One run's evaluations in a table, by the name of the view."""
Seeds = Mapping[int | None, Cell]
"""One method on one data set: its runs by seed; None stands for every seed."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """Mean over seeds in percent, and standard deviation; None for one seed."""

    mean: float
    deviation: float | None


def value(cell: Cell, measure: Measure) -> float:
    """A measure of one run, in percent."""
    accuracies = [cell[view].accuracy(attack) for view, attack in measure.parts]
    return statistics.harmonic_mean(accuracies) if measure.mean == "harmonic" else statistics.mean(accuracies)


def has(cells: Seeds, measure: Measure) -> bool:
    """Whether every run of a method has what the measure asks for."""
    return bool(cells) and all(view in cell for cell in cells.values() for view, _ in measure.parts)


def figure(sets: Sequence[Seeds], measure: Measure) -> Figure:
    """A measure of one method: mean over data sets, then mean and deviation over seeds."""
    seeds = shared_seeds(sets)
    values = [statistics.mean(value(_cell(cells, seed), measure) for cells in sets) for seed in seeds]
    return Figure(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)


def difference(a: Sequence[Seeds], b: Sequence[Seeds], measure: Measure) -> Difference | None:
    """``a - b`` over the seeds that they share; None where they share none or saw other images.

    Accuracies of one evaluation go through `apd.evaluation.statistics.paired_bootstrap`; means of several (harmonic ones are not
    linear in the images) through `bootstrap_of_means`. Both draw images, and an image brings both methods' outcomes of
    all seeds along; both average over data sets.

    Args:
        a: one method, data set by data set.
        b: the other, on the same data sets in the same order.
        measure: what is compared.
    """
    seeds = shared_seeds([*a, *b])
    pairs = [[(_cell(x, seed), _cell(y, seed)) for seed in seeds] for x, y in zip(a, b, strict=True)]
    views = [view for view, _ in measure.parts]
    if not seeds or any(x[view].images != y[view].images for runs in pairs for x, y in runs for view in views):
        return None
    same_images = all(len({x[view].images for x, _ in runs}) == 1 for runs in pairs for view in views)
    if len(measure.parts) == 1 and same_images:
        (part,) = measure.parts
        left = np.concatenate([np.array([_marks(x, part) for x, _ in runs]) for runs in pairs], axis=1)
        right = np.concatenate([np.array([_marks(y, part) for _, y in runs]) for runs in pairs], axis=1)
        strata = [i for i, runs in enumerate(pairs) for _ in _marks(runs[0][0], part)]
        return paired_bootstrap(left, right, strata)
    return bootstrap_of_means(pairs, measure)


def bootstrap_of_means(
    pairs: Sequence[Sequence[tuple[Cell, Cell]]],
    measure: Measure,
    *,
    seed: int = 0,
    samples: int = 10_000,
    confidence: float = 0.95,
) -> Difference:
    """Percentile bootstrap of the difference of a measure that is a mean of several accuracies.

    Args:
        pairs: data set by data set, seed by seed: the two methods' runs on the same images.
        measure: the mean.
        seed: of the draws.
        samples: how many draws.
        confidence: of the interval.
    """
    rng = np.random.default_rng(seed)
    drawn: list[Array] = []
    found: list[Array] = []
    for runs in pairs:
        resampled, observed = _accuracies(runs, measure, samples, rng)
        for accuracies, collect in ((resampled, drawn), (observed, found)):
            means = _combined(accuracies, measure.mean)  # (samples, seeds, 2)
            collect.append((means[..., 0] - means[..., 1]).mean(axis=1))
    low, high = np.quantile(np.mean(drawn, axis=0), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(float(np.mean(found)), float(low), float(high))


def _accuracies(
    runs: Sequence[tuple[Cell, Cell]], measure: Measure, samples: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Accuracies in percent, resampled (samples, seeds, 2, parts) and observed (1, seeds, 2, parts).

    What saw the same images is drawn together: how often each pattern of outcomes comes is a multinomial.
    """
    shape = len(runs), 2, len(measure.parts)
    resampled, observed = np.empty((samples, *shape)), np.empty((1, *shape))
    places: dict[str, list[tuple[int, int, int]]] = {}
    for place in np.ndindex(*shape):
        run, side, part = place
        places.setdefault(runs[run][side][measure.parts[part][0]].images, []).append((run, side, part))
    for group in places.values():
        marks = np.array([_marks(runs[run][side], measure.parts[part]) for run, side, part in group])
        patterns, counts = np.unique(marks, axis=1, return_counts=True)
        n = marks.shape[1]
        means = rng.multinomial(n, counts / n, size=samples) @ patterns.T * (100 / n)
        for column, place in enumerate(group):
            resampled[(slice(None), *place)] = means[:, column]
            observed[(slice(None), *place)] = 100 * marks[column].mean()
    return resampled, observed


def _combined(accuracies: Array, mean: Literal["harmonic", "arithmetic"]) -> Array:
    """Mean over the last axis; the harmonic mean with a 0 is 0."""
    if mean == "arithmetic":
        return np.asarray(accuracies.mean(axis=-1))
    positive = (accuracies > 0).all(axis=-1)
    inverse = (1 / np.where(accuracies > 0, accuracies, 1.0)).mean(axis=-1)
    return np.where(positive, 1 / inverse, 0.0)


def shared_seeds(sets: Sequence[Seeds]) -> list[int | None]:
    """The seeds that all share, those that stand for every seed left aside."""
    seeded = [set(cells) for cells in sets if None not in cells]
    return sorted(set.intersection(*seeded), key=str) if seeded else [None]


def _cell(cells: Seeds, seed: int | None) -> Cell:
    return cells[None] if None in cells else cells[seed]


def _marks(cell: Cell, part: tuple[str, str]) -> Array:
    view, attack = part
    return np.array([mark == "1" for mark in cell[view].right[attack]], dtype=float)
