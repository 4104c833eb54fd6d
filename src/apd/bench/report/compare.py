"""The figures of a table and the paired differences between methods, over images, seeds and data sets."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from apd.bench.job import EvalOutcome
from apd.bench.protocols import Metric
from apd.evaluation.statistics import SAMPLES, Difference, paired_bootstrap

Cell = Mapping[str, EvalOutcome]
"""One run's evaluations in a table, by the name of the evaluation."""
Seeds = Mapping[int | None, Cell]
"""One method on one data set: its runs by seed; None stands for every seed."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class MeanStd:
    """Mean over seeds in percent, and standard deviation, which is None for one seed."""

    mean: float
    deviation: float | None


def value(cell: Cell, metric: Metric) -> float:
    """Compute a metric of one run, in percent."""
    accuracies = [cell[spec].accuracy(attack) for spec, attack in metric.parts]
    return statistics.harmonic_mean(accuracies) if metric.mean == "harmonic" else statistics.mean(accuracies)


def has(cells: Seeds, metric: Metric) -> bool:
    """Whether every run of a method has what the metric asks for."""
    return bool(cells) and all(spec in cell for cell in cells.values() for spec, _ in metric.parts)


def mean_std(sets: Sequence[Seeds], metric: Metric) -> MeanStd:
    """Compute a metric of one method: mean over data sets, then mean and deviation over seeds."""
    seeds = shared_seeds(sets)
    values = [statistics.mean(value(_cell(cells, seed), metric) for cells in sets) for seed in seeds]
    return MeanStd(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)


def difference(a: Sequence[Seeds], b: Sequence[Seeds], metric: Metric) -> Difference | None:
    """Compute ``a - b`` over the seeds that they share; None if they share none or saw other images.

    Accuracies of one evaluation go through `apd.evaluation.statistics.paired_bootstrap`; means of several (harmonic ones are not
    linear in the images) through `bootstrap_of_means`. Both draw images, and an image brings both methods' outcomes of
    all seeds along; both average over data sets.

    Args:
        a: one method, data set by data set.
        b: the other, on the same data sets in the same order.
        metric: what is compared.
    """
    seeds = shared_seeds([*a, *b])
    pairs = [[(_cell(x, seed), _cell(y, seed)) for seed in seeds] for x, y in zip(a, b, strict=True)]
    evals = [spec for spec, _ in metric.parts]
    if not seeds or any(x[spec].images != y[spec].images for runs in pairs for x, y in runs for spec in evals):
        return None
    same_images = all(len({x[spec].images for x, _ in runs}) == 1 for runs in pairs for spec in evals)
    if len(metric.parts) == 1 and same_images:
        (part,) = metric.parts
        left = np.concatenate([np.array([marks_of(x, part) for x, _ in runs]) for runs in pairs], axis=1)
        right = np.concatenate([np.array([marks_of(y, part) for _, y in runs]) for runs in pairs], axis=1)
        strata = [i for i, runs in enumerate(pairs) for _ in marks_of(runs[0][0], part)]
        return paired_bootstrap(left, right, strata)
    return bootstrap_of_means(pairs, metric)


def bootstrap_of_means(pairs: Sequence[Sequence[tuple[Cell, Cell]]], metric: Metric) -> Difference:
    """Percentile bootstrap of the difference of a metric that is a mean of several accuracies.

    Args:
        pairs: data set by data set, seed by seed: the two methods' runs on the same images.
        metric: the mean.
    """
    rng = np.random.default_rng(0)
    drawn: list[Array] = []
    found: list[Array] = []
    for runs in pairs:
        resampled, observed = _accuracies(runs, metric, SAMPLES, rng)
        for accuracies, collect in ((resampled, drawn), (observed, found)):
            means = _combined(accuracies, metric.mean)  # (samples, seeds, 2)
            collect.append((means[..., 0] - means[..., 1]).mean(axis=1))
    sizes = [min(len(marks_of(runs[0][0], part)) for part in metric.parts) for runs in pairs]
    return Difference.of_draws(float(np.mean(found)), np.mean(drawn, axis=0), sizes)


def _accuracies(
    runs: Sequence[tuple[Cell, Cell]], metric: Metric, samples: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Accuracies in percent, resampled (samples, seeds, 2, parts) and observed (1, seeds, 2, parts).

    What saw the same images is drawn together: how often each pattern of outcomes comes is a multinomial.
    """
    shape = len(runs), 2, len(metric.parts)
    resampled, observed = np.empty((samples, *shape)), np.empty((1, *shape))
    groups: dict[str, list[tuple[int, int, int]]] = {}
    for run, side, part in np.ndindex(*shape):
        groups.setdefault(runs[run][side][metric.parts[part][0]].images, []).append((run, side, part))
    for group in groups.values():
        marks = np.array([marks_of(runs[run][side], metric.parts[part]) for run, side, part in group])
        patterns, counts = np.unique(marks, axis=1, return_counts=True)
        n = marks.shape[1]
        means = rng.multinomial(n, counts / n, size=samples) @ patterns.T * (100 / n)
        for column, index in enumerate(group):
            resampled[(slice(None), *index)] = means[:, column]
            observed[(slice(None), *index)] = 100 * marks[column].mean()
    return resampled, observed


def _combined(accuracies: Array, mean: Literal["harmonic", "arithmetic"]) -> Array:
    """Mean over the last axis; the harmonic mean with a 0 is 0."""
    if mean == "arithmetic":
        return np.asarray(accuracies.mean(axis=-1))
    positive = (accuracies > 0).all(axis=-1)
    inverse = (1 / np.where(accuracies > 0, accuracies, 1.0)).mean(axis=-1)
    return np.where(positive, 1 / inverse, 0.0)


def shared_seeds(sets: Sequence[Seeds]) -> list[int | None]:
    """List the seeds that all share, apart from runs that stand for every seed."""
    seeded = [set(cells) for cells in sets if None not in cells]
    return sorted(set.intersection(*seeded), key=str) if seeded else [None]


def _cell(cells: Seeds, seed: int | None) -> Cell:
    return cells[None] if None in cells else cells[seed]


def marks_of(cell: Cell, part: tuple[str, str]) -> Array:
    """A 1 or a 0 per image: whether it is right in this (evaluation, attack)."""
    spec, attack = part
    return np.array([mark == "1" for mark in cell[spec].right[attack]], dtype=float)
