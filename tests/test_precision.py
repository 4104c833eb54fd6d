"""How precise a number is: against scipy, simulation, and counting what run folders keep."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import binom, binomtest, ttest_1samp

import apd
from apd.evaluation.precision import precision
from apd.evaluation.statistics import OverTrainings, images_for, images_to_tell, mcnemar, over_trainings, wilson
from tests.command_line import Cli
from tests.refusals import refused

QUICK: dict[str, Any] = {"attacks": "pgd-1", "checks": False, "quiet": True, "device": "cpu"}


def test_interval_over_trainings_is_students() -> None:
    values = [41.0, 43.5, 39.2, 44.1]
    found = over_trainings(values, 0.9)
    reference = ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))
    assert found.deviation == pytest.approx(np.std(values, ddof=1))
    assert over_trainings([95.0, 95.0]) == OverTrainings(2, 95.0, 0.0, None, None), "of which nothing is known"
    with refused("two trainings"):
        over_trainings([1.0])


@pytest.mark.parametrize("points", [1.0, 2.5, 10.0])
@pytest.mark.parametrize("accuracy", [50.0, 80.0])
def test_so_many_images_are_enough_and_fewer_are_not(points: float, accuracy: float) -> None:
    def reach(n: int) -> float:
        k = round(accuracy / 100 * n)
        interval = binomtest(k, n).proportion_ci(method="wilson")
        return 100 * max(interval.high - k / n, k / n - interval.low)

    n = images_for(points, accuracy)
    assert reach(n) == pytest.approx(points, rel=0.02)
    assert reach(n // 2) > 1.2 * points


def test_a_difference_is_found_as_often_as_promised() -> None:
    n = images_to_tell(6, differing=20, power=0.8)
    rng = np.random.default_rng(0)
    only_a, only_b = 0.13, 0.07
    found = 0
    for _ in range(400):
        kind = rng.choice(3, size=n, p=[only_a, only_b, 1 - only_a - only_b])
        found += mcnemar(kind == 0, kind == 1) <= 0.05
    # The exact test is a little more careful than the formula.
    assert 0.70 < found / 400 < 0.86


@pytest.mark.parametrize(("k", "m"), [(0, 0), (1, 5), (7, 7), (0, 9)])
def test_mcnemar_counts_both_tails(k: int, m: int) -> None:
    a, b = [1] * k + [0] * m, [0] * k + [1] * m
    tail = sum(binom.pmf(i, k + m, 0.5) for i in range(min(k, m) + 1))
    assert mcnemar(a, b) == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize("wrong", [{"points": 0}, {"points": 1e-5}, {"points": 5, "accuracy": 101}])
def test_impossible_precisions_are_refused(wrong: dict[str, float]) -> None:
    with refused("precision"):
        images_for(**wrong)
    with refused("difference"):
        images_to_tell(5, differing=2)


def all_wrong(run: Path) -> None:
    """Let a run have got every image wrong."""
    (file,) = (run / "results").glob("outcomes-*.json")
    (summary,) = (run / "results").glob("summary-*.json")
    kept, about = json.loads(file.read_text()), json.loads(summary.read_text())
    for attack in kept["predictions"]:
        kept["predictions"][attack] = [(label + 1) % 3 for label in kept["labels"]]
        about["attacks"].get(attack, {})["accuracy"] = 0.0
    about |= {"clean": 0.0, "worst": {**about["worst"], "accuracy": 0.0}}
    file.write_text(json.dumps(kept))
    summary.write_text(json.dumps(about))


def rename(run: Path, digit: str) -> None:
    """Give a run the prompts of another training."""
    manifest = run / "run.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "prompts_sha256": digit * 64}))


def test_runs_are_read_as_trainings(run: Path, tmp_path: Path, cli: Cli) -> None:
    result = apd.evaluate_run(run, **QUICK)
    (alone, _) = precision([run])
    assert (alone.attack, alone.n, alone.accuracy) == ("clean", result.n, result.clean)
    assert alone.images == result.clean_interval and alone.trainings is None
    other = shutil.copytree(run, tmp_path / "other")
    all_wrong(other)
    with refused(str(run), str(other), "prompts"):
        precision([run, other])
    rename(other, "0")
    (both, _) = precision([run, other], points=[4])
    assert both.accuracy == pytest.approx(result.clean / 2, abs=0.01)
    assert both.trainings is not None and both.trainings.n == 2
    assert (both.trainings.low, both.trainings.high) == (0, 100), "of two trainings, and an accuracy"
    assert 0 <= both.images[0] < both.images[1] <= 100
    assert both.needed == {4: images_for(4, both.accuracy)}
    answer = cli("precision", run, other, "--json")
    assert answer.code == 0 and len(json.loads(answer.out)["accuracies"]) == 2
    assert "train.eps" not in answer.err
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["train"] |= {"seed": 5, "eps": "7/255"}
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    answer = cli("precision", run, other)
    assert "train.eps" in answer.err and "7/255" in answer.err and "train.seed" not in answer.err
    assert "clean" in cli("precision", run).out
    assert cli("precision", run, "--points", "x").code == 2
    assert cli("precision", run, run).code == 2
    assert cli("precision", tmp_path).code == 2


def test_trainings_that_are_wrong_on_every_image_are_not_certain_to_be(run: Path, tmp_path: Path) -> None:
    result = apd.evaluate_run(run, **QUICK)
    other = shutil.copytree(run, tmp_path / "other")
    for digit, place in enumerate((run, other)):
        all_wrong(place)
        rename(place, str(digit))
    for known in precision([run, other]):
        assert known.accuracy == 0 and known.images == pytest.approx(
            [100 * end for end in wilson(0, result.n)], abs=0.01
        )


def test_every_attack_is_told_by_the_largest_evaluation_with_it(run: Path, tmp_path: Path) -> None:
    apd.evaluate_run(run, **{**QUICK, "attacks": "pgd-1", "limit": 6})
    apd.evaluate_run(run, **{**QUICK, "attacks": ("pgd-2", "pgd-3"), "limit": 4})
    assert [(row.attack, row.n) for row in precision(run)] == [("clean", 6), ("pgd-1", 6), ("pgd-2", 4), ("pgd-3", 4)]
    apd.evaluate_run(run, **{**QUICK, "attacks": ("pgd-1", "pgd-2", "pgd-3"), "limit": 3})
    *_, worst = precision(run)
    assert (worst.attack, worst.n) == ("worst", 3)
