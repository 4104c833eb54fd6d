"""Intervals and verdicts, against scipy and a slow loop."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.stats import binomtest

from apd.evaluation.statistics import Difference, paired_bootstrap, wilson

from .refusals import refused


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 40), (40, 40), (7, 9), (250, 500), (3, 10_000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_agrees_with_scipy(k: int, n: int, confidence: float) -> None:
    reference = binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert wilson(k, n, confidence) == pytest.approx((reference.low, reference.high), abs=1e-12)


@pytest.mark.parametrize("confidence", [0.95, 0.999])
def test_the_interval_of_none_and_of_all_holds_their_share_to_the_bit(confidence: float) -> None:
    for n in range(1, 100):
        assert wilson(0, n, confidence)[0] == 0 and wilson(n, n, confidence)[1] == 1


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(k: int, n: int) -> None:
    with refused(f"k={k}", f"n={n}"):
        wilson(k, n)


def slow_bootstrap(a: np.ndarray, b: np.ndarray, strata: list[str], samples: int) -> tuple[float, float]:
    """Draw images one by one."""
    draw = random.Random(3)
    groups = {name: [i for i, other in enumerate(strata) if other == name] for name in strata}
    means = []
    for _ in range(samples):
        per_group = []
        for index in groups.values():
            drawn = draw.choices(index, k=len(index))
            per_group.append(sum(100 * (a[:, i].mean() - b[:, i].mean()) for i in drawn) / len(drawn))
        means.append(sum(per_group) / len(per_group))
    means.sort()
    return means[int(0.025 * samples)], means[int(0.975 * samples)]


def test_bootstrap_agrees_with_the_slow_one() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 60)) < 0.7, rng.random((3, 60)) < 0.5
    strata = ["digits"] * 45 + ["letters"] * 15
    found = paired_bootstrap(a, b, strata, samples=4000)
    low, high = slow_bootstrap(a, b, strata, 2000)
    by_hand = np.mean([100 * (a[:, :45].mean() - b[:, :45].mean()), 100 * (a[:, 45:].mean() - b[:, 45:].mean())])
    assert found.mean == pytest.approx(by_hand)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1.0)
    assert found.high - found.low > 5


def test_bootstrap_is_paired_and_stratified() -> None:
    """Outcomes that differ by the same amount within a data set vary as little as the one image that does not."""
    a, b = np.array([1, 1, 0, 0, 1, 1] * 20), np.array([0, 0, 0, 0, 0, 0] * 20)
    strata = ["x", "x", "y", "y", "x", "x"] * 20
    a[2] = 1
    found = paired_bootstrap(a, b, strata)
    assert found.mean == pytest.approx(51.25)
    assert found.high - found.low < 5
    assert paired_bootstrap(a, b).low < 61 < paired_bootstrap(a, b).mean


@pytest.mark.parametrize("n", [40, 300])
def test_classifiers_that_agree_on_all_images_may_still_differ(n: int) -> None:
    """The interval ends where none of ``n`` images would have differed in 2.5 % of all cases."""
    from scipy.stats import binomtest

    right = np.arange(n) % 3 == 0
    found = paired_bootstrap(right, right)
    assert found.mean == 0
    assert found.high == pytest.approx(100 * binomtest(0, n).proportion_ci(method="exact").high)
    assert found.low == -found.high
    assert found.verdict == ("as good" if n == 300 else "undecided")
    always = paired_bootstrap(np.ones(n), np.zeros(n))
    assert (always.mean, always.high) == (100, 100)
    assert always.low == pytest.approx(100 - found.high)


def test_bootstrap_is_reproducible_and_refuses_other_images() -> None:
    a, b = [1, 0, 1, 1], [0, 0, 1, 0]
    assert paired_bootstrap(a, b, seed=1) == paired_bootstrap(a, b, seed=1)
    with refused("(1, 4)", "(1, 3)"):
        paired_bootstrap(a, b[:3])
    with refused("strata", "4", "1"):
        paired_bootstrap(a, b, strata=["x"])


@pytest.mark.parametrize(
    ("low", "verdict"), [(0.1, "better"), (0.0, "as good"), (-1.4, "as good"), (-1.5, "undecided"), (-9.0, "undecided")]
)
def test_verdict(low: float, verdict: str) -> None:
    assert Difference(mean=1.0, low=low, high=2.0).verdict == verdict


@pytest.mark.parametrize(("low", "high", "verdict"), [(-9.0, -0.1, "worse"), (-1.4, -0.1, "as good")])
def test_verdict_where_the_other_is_better(low: float, high: float, verdict: str) -> None:
    assert Difference(mean=-1.0, low=low, high=high).verdict == verdict
