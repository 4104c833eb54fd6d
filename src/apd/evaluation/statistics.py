"""How sure a number is: intervals for one accuracy, and for the difference of two classifiers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from apd.errors import InputError

Verdict = Literal["better", "as good", "worse", "undecided"]

CONFIDENCE = 0.95
"""Level of intervals."""
SAMPLES = 10_000
"""Draws of a bootstrap."""
AS_GOOD_MARGIN = 1.5
"""Percentage points that a classifier "as good" may at most be worse by."""


def wilson(k: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval for ``k`` successes of ``n`` (Wilson 1927), as shares in [0,1].

    Raises:
        InputError: no samples, or k not in 0..n.

    >>> tuple(round(end, 3) for end in wilson(5, 10))
    (0.237, 0.763)
    """
    if n < 1 or not 0 <= k <= n:
        raise InputError(f"An interval needs n >= 1 samples and 0 <= k <= n successes, got k={k}, n={n}.")
    low, high = _score_interval(k / n, n, confidence)
    return (low if k > 0 else 0.0), (high if k < n else 1.0)  # rounding must not leave the share itself outside


def _score_interval(p: float, n: float, confidence: float) -> tuple[float, float]:
    """Wilson's interval for a share ``p`` of ``n``, which need not be a whole number of samples."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return centre - half, centre + half


@dataclass(frozen=True)
class Difference:
    """Mean of ``a - b`` in percentage points and its bootstrap interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of_draws(
        cls, mean: float, draws: np.ndarray, sizes: Sequence[int], confidence: float = CONFIDENCE
    ) -> Difference:
        """Take the interval of the bootstrap's draws.

        Where all draws are alike, as for two classifiers that agree on every image, they would say that nothing is uncertain. The
        interval is then as wide as the share of images that may yet differ: none did among ``n`` (Clopper & Pearson 1934).

        Args:
            mean: the difference itself.
            draws: the differences drawn, in percentage points.
            sizes: number of images of each data set that the difference is a mean over.
            confidence: the interval's level.

        >>> same = Difference.of_draws(0.0, np.zeros(10), sizes=[100])
        >>> round(same.low, 2), round(same.high, 2), same.verdict
        (-3.62, 3.62, 'undecided')
        """
        low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
        if low == high:
            unseen = 100 * (1 - ((1 - confidence) / 2) ** (1 / (len(sizes) * min(sizes))))
            low, high = max(-100.0, low - unseen), min(100.0, high + unseen)
        return cls(mean, float(low), float(high))

    @property
    def verdict(self) -> Verdict:
        """Whether ``a`` is better (interval above 0), as good (lower end above -1.5 points), worse (``b`` is better)."""
        if self.low > 0:
            return "better"
        if self.low > -AS_GOOD_MARGIN:
            return "as good"
        return "worse" if self.high < 0 else "undecided"


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    strata: Sequence[object] | None = None,
    seed: int = 0,
    samples: int = SAMPLES,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Percentile bootstrap of ``a - b``, paired and stratified (Efron & Tibshirani 1993, ch. 13).

    Images are drawn with replacement within their stratum (data set); an image brings its outcomes of both classifiers
    and of all seeds along. The difference is the mean over strata of their mean differences, so that no data set counts
    more for having more images.

    Args:
        a: outcomes (N,) or (seeds, N), 1 for right and 0 for wrong.
        b: outcomes of the other classifier on the same images and seeds.
        strata: (N,) the data set each image is of; None: all of one.
        seed: decides the draws.
        samples: how many draws.
        confidence: the interval's level.

    Raises:
        InputError: shapes that differ, or no images.

    Example:
        >>> paired_bootstrap([1, 1, 1, 0] * 50, [1, 0, 1, 0] * 50).verdict
        'better'
    """
    right, wrong = np.atleast_2d(np.asarray(a, dtype=float)), np.atleast_2d(np.asarray(b, dtype=float))
    if right.shape != wrong.shape or right.size == 0:
        raise InputError(
            f"A paired comparison needs the same images and seeds, got shapes {right.shape} and {wrong.shape}."
        )
    delta = (right - wrong).mean(axis=0) * 100
    names = np.zeros(len(delta)) if strata is None else np.asarray([str(name) for name in strata])
    if len(names) != len(delta):
        raise InputError(f"strata must name the data set of each of {len(delta)} images, got {len(names)}.")
    rng = np.random.default_rng(seed)
    groups = [delta[names == name] for name in np.unique(names)]
    means = np.mean([_resampled_means(group, samples, rng) for group in groups], axis=0)
    mean = float(np.mean([group.mean() for group in groups]))
    return Difference.of_draws(mean, means, [len(group) for group in groups], confidence)


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Exact two-sided p-value of McNemar's test (1947): are ``a`` and ``b`` equally often right on the same images?

    Only images that exactly one of the two gets right count; under the hypothesis each is as likely to be ``a``'s.

    Args:
        a: outcomes (N,), 1 for right and 0 for wrong.
        b: outcomes of the other classifier on the same images.

    Raises:
        InputError: shapes that differ.

    >>> mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1])
    0.21875
    """
    from scipy.stats import binomtest

    right, wrong = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if right.shape != wrong.shape:
        raise InputError(f"A paired test needs the same images, got shapes {right.shape} and {wrong.shape}.")
    only_a, only_b = int((right & ~wrong).sum()), int((wrong & ~right).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def p_text(p: float) -> str:
    """Write a p-value for people.

    >>> p_text(0.0423), p_text(0.0001)
    ('0.042', '<0.001')
    """
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


@dataclass(frozen=True)
class OverTrainings:
    """Mean of one figure over trainings with different seeds, in its own unit, and where the mean of many would lie.

    Of trainings that are all equal nothing can be said of others: ``low`` and ``high`` are None.
    """

    n: int
    mean: float
    deviation: float
    low: float | None
    high: float | None


def over_trainings(values: Sequence[float], confidence: float = CONFIDENCE) -> OverTrainings:
    """Student's t interval of the mean over trainings: what other seeds would change, the images being the same.

    Raises:
        InputError: fewer than two values.

    >>> found = over_trainings([40.0, 42.0, 44.0])
    >>> round(found.low, 1), found.mean, round(found.high, 1)
    (37.0, 42.0, 47.0)
    """
    from scipy.stats import t

    if len(values) < 2:
        raise InputError(f"An interval over trainings needs at least two trainings, got {len(values)}.")
    if min(values) == max(values):
        return OverTrainings(len(values), float(values[0]), 0.0, None, None)
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return OverTrainings(len(values), mean, deviation, mean - half, mean + half)


def images_for(points: float, accuracy: float = 50.0, confidence: float = CONFIDENCE) -> int:
    """Return how many images an accuracy needs so that neither end of its Wilson interval is farther away than this.

    Args:
        points: percentage points.
        accuracy: what is expected, in percent; 50 needs most.
        confidence: the interval's level.

    Raises:
        InputError: points below 0.001, or an accuracy outside of 0 to 100.

    >>> images_for(5), images_for(2), images_for(2, accuracy=95)
    (381, 2398, 626)
    """
    from scipy.optimize import bisect

    if not 0.001 <= points < 100 or not 0 <= accuracy <= 100:
        raise InputError(
            f"A precision is 0.001 points or more and an accuracy from 0 to 100 %, got {points:g} and {accuracy:g}."
        )
    p = accuracy / 100

    def excess(log_n: float) -> float:
        low, high = _score_interval(p, math.exp(log_n), confidence)
        return max(high - p, p - low) - points / 100

    if excess(0.0) <= 0:
        return 1
    return math.ceil(math.exp(float(bisect(excess, 0.0, math.log(1e12)))) - 1e-6)


def images_to_tell(points: float, differing: float, power: float = 0.8, confidence: float = CONFIDENCE) -> int:
    """Return how many images tell two classifiers apart in McNemar's test, that often (Connor 1987).

    Args:
        points: true difference of their accuracies, in percentage points.
        differing: share of the images, in percent, that exactly one of the two gets right.
        power: probability of finding the difference.
        confidence: one minus the level of the two-sided test.

    Raises:
        InputError: a difference of 0, or one that is larger than the share of differing images.

    >>> images_to_tell(2, differing=10), images_to_tell(5, differing=10)
    (1960, 312)
    """
    from scipy.stats import norm

    if not 0 < points <= differing <= 100:
        raise InputError(
            f"The difference is above 0 and at most the share that differs, got {points:g} and {differing:g}."
        )
    d, psi = points / 100, differing / 100
    level, rest = float(norm.ppf((1 + confidence) / 2)), float(norm.ppf(power))
    return math.ceil(((level * math.sqrt(psi) + rest * math.sqrt(psi - d * d)) / d) ** 2)


def _resampled_means(values: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Means (samples,) of many draws with replacement.

    Outcomes take few values, so a draw is a draw of how often each value comes (a multinomial): the same distribution
    without an index for every image.
    """
    kinds, counts = np.unique(values, return_counts=True)
    draws = rng.multinomial(len(values), counts / len(values), size=samples)
    means: np.ndarray = draws @ kinds / len(values)
    return means
