"""How many images an evaluation is of, and how many at a time, by the pace of the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from apd import attacks
from apd.attacks import PGD, Objective, cross_entropy, misclassified, sample_seeds
from apd.attacks.threat import ThreatModel
from apd.evaluation import (
    EvaluationSettings,
    Result,
    engine,
    evaluate,
    evaluate_tensors,
    forecast,
    parse_settings,
    progress,
    sample,
)
from apd.evaluation.engine import Keeper
from apd.evaluation.forecast import Measured, measure
from apd.evaluation.frozen import Subject
from apd.evaluation.result import Check
from apd.evaluation.samples import Samples
from apd.models.classifier import PromptedCLIP
from apd.util.messages import command_line

from .command_line import Cli, Said
from .test_evaluation import NAMES, data_of, settings
from .toys import decoded, toy_clip, trained

HELD = Check(name="eps 0", passed=True, value=0, message="")
PASSES = 1 + (2 * 5 + 1)
"""Of an image that is right: the clean one, and PGD-5."""


def paced(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """A machine of this pace."""
    for module in (engine, sample):
        monkeypatch.setattr(module, "measure", lambda *_: Measured(0.0, seconds, right=1.0, robust=0.5))
    monkeypatch.setattr(engine, "measure_pace", lambda *_: Measured(0.0, seconds, right=1.0, robust=1.0))


def toy_run(store: Path, **values: Any) -> Result:
    data = data_of(5)
    classifier = PromptedCLIP(toy_clip(5), None, data.class_names, data.templates)
    options: dict[str, Any] = {"attacks": "pgd-5", "eps": "10/255", "checks": False, "store": store}
    return evaluate(classifier, data, **(options | values))


def test_default_evaluation_is_bounded() -> None:
    default = EvaluationSettings()
    assert (default.adversarial, default.limit) == (("apgd-ce+dlr",), "auto")


@pytest.mark.parametrize(("share", "n"), [(0.4, 40), (0.9, 20), (50, 20)])
def test_sample_is_what_is_foretold_to_take_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said, share: float, n: int
) -> None:
    """``share`` of the time that may be taken goes to 20 images; there are 40."""
    paced(monkeypatch, share * sample.SECONDS / (20 * PASSES))
    result = toy_run(tmp_path)
    assert (result.n, result.n_available, result.limit) == (n, 40, "auto")
    first = said()[0]
    assert first.startswith("all 40 test images" if n == 40 else "20 of 40 test images, a random sample")
    assert "pgd-5" in first and ('limit="all"' in first) == (n < 40) and f'attacks="autoattack", limit={n}' in first
    assert max(map(len, first.splitlines())) <= 80
    assert ("20 of 40 images" in str(result)) == (n < 40)


def test_ways_out_are_options_in_a_command_and_arguments_in_python(tmp_path: Path) -> None:
    few, result = sample.Sample(20, 40, 60.0, 120.0, 600.0), toy_run(tmp_path).model_copy(update={"checks": (HELD,)})

    def told() -> str:
        return few.describe("test", ["pgd-5"]) + str(result)

    python = told()
    assert 'limit="all" (about' in python and 'attacks="autoattack", limit=20 (about' in python
    assert "see result.checks" in python and " --" not in python
    with command_line():
        command = told()
    assert "--limit all (about" in command and "--strong --limit 20 (about" in command and "--json has them" in command
    assert told() == python


def test_sample_is_kept_and_a_limit_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paced(monkeypatch, sample.SECONDS / (25 * PASSES))
    before = toy_run(tmp_path)
    (file,) = tmp_path.glob("sample-*.json")
    assert json.loads(file.read_text())["n"] == before.n == 20
    paced(monkeypatch, 1e-9)
    again = toy_run(tmp_path)
    assert again.ids == before.ids and again.predictions == before.predictions
    assert toy_run(tmp_path / "fresh").n == 40
    monkeypatch.setattr(sample, "measure", None)
    found = [toy_run(tmp_path, limit=limit) for limit in (7, "7", "all", None, 1000)]
    assert [(result.n, result.limit) for result in found] == [(7, 7), (7, 7), (40, "all"), (40, "all"), (40, 1000)]
    assert set(found[0].ids) < set(before.ids) < set(found[2].ids)


def test_batch_is_as_large_as_a_part_of_an_attack_ends_within_a_minute() -> None:
    """AutoAttack on five classes: Square's 5,000 queries are the longest part, on what is expected to stand."""
    first, apgd, fab, square = attacks.find("autoattack").part_passes(5)
    assert square == max(first, apgd, fab, square) == 5004
    for size in (128, 64, 8, 1):
        pace = Measured(0.0, 60 / (0.5 * square * size), right=0.9, robust=0.5)
        slower = Measured(0.0, 1.01 * pace.seconds, right=0.9, robust=0.5)
        assert [one.batch_size("autoattack", 5) for one in (pace, slower)] == [size, max(1, size // 2)]
    assert Measured(0.0, 60 / 30, 1.0, 1.0).batch_size("clean", 5) == 16


def test_batch_is_not_smaller_than_saves_time() -> None:
    """Every pass takes a second, however few images it is of, and each image adds a sixteenth of it."""
    assert Measured(1.0, 1 / 16, right=0.9, robust=0.5).batch_size("autoattack", 5) == 16


def test_expected_seconds_are_those_of_all_passes() -> None:
    """Four fifths of a batch of 50 images are attacked; half of those withstand PGD-10 and get the rest."""
    pace = Measured(0.001, 0.002, right=0.8, robust=0.5)
    pgd, apgd, dlr = attacks.find("apgd-ce+dlr").part_passes(5)
    batch = pgd * (0.001 + 0.002 * 50) + (apgd + dlr) * (0.001 + 0.002 * 25)
    assert pace.batch_size("apgd-ce+dlr", 5) > 50
    assert pace.expected_seconds(50, ["apgd-ce+dlr"], 5) == pytest.approx(50 * 0.002 + 0.8 * batch)


def test_batch_size_is_recorded_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"attacks": "apgd-ce", "control": False}
    slow = 60 / (attacks.find("apgd-ce").part_passes(5)[0] * 4)
    paced(monkeypatch, slow)
    assert toy_run(tmp_path, limit=20, **options).attacks["apgd-ce"].batch_sizes == (4,)
    paced(monkeypatch, 1e-9)
    assert toy_run(tmp_path, limit="all", **options).attacks["apgd-ce"].batch_sizes == (4,)
    assert toy_run(tmp_path / "fresh", limit="all", **options).attacks["apgd-ce"].batch_sizes == (128,)
    assert toy_run(tmp_path / "set", limit="all", batch_size=9, **options).attacks["apgd-ce"].batch_sizes == (9,)


def test_measured_shares_are_those_of_the_images() -> None:
    model, images, eps = trained(5), decoded(60, 5, seed=5), 0.04
    found = measure(Subject.of(model), Samples(images), settings(eps=eps))
    x, labels = images.pixels(), images.labels
    right = ~misclassified(model(x), labels)
    objective, seeds = Objective(model, cross_entropy, labels), sample_seeds(images.ids, 0, "start")
    adversarial = PGD(10, leave=misclassified)(objective, x, ThreatModel(eps), seeds)
    robust = right & ~misclassified(model(adversarial), labels)
    assert 0 < robust.sum() < right.sum() < 60
    assert found.right == pytest.approx(float(right.float().mean()))
    assert found.robust == pytest.approx((int(robust.sum()) + 1) / (int(right.sum()) + 1))
    assert found.seconds > 0


def test_the_pace_is_that_of_all_passes_not_of_the_quickest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others use the machine too, some passes wait for them, and so will the attack."""
    clock, passes = [0.0], iter([0.01, 0.01, 0.06, 0.01, 0.01] * 100)

    def perf_counter() -> float:
        return clock[0]

    model, samples = trained(5), Samples(decoded(3, 5))
    subject = Subject.of(model)
    answer = type(subject).predict

    def slow(self: Subject, x: Tensor) -> Tensor:
        clock[0] += next(passes)
        return answer(self, x)

    monkeypatch.setattr(forecast.time, "perf_counter", perf_counter)
    monkeypatch.setattr(Subject, "predict", slow)
    assert forecast._seconds(subject, samples, [0], attacked=False) == pytest.approx(0.02)


@pytest.mark.parametrize(("n_classes", "last"), [(2, "apgd-margin"), (3, "apgd-dlr")])
def test_default_attack_with_few_classes(n_classes: int, last: str) -> None:
    """DLR divides by the distance to the third logit, so with two classes it is the margin, and called that."""
    chosen = parse_settings({"eps": 0.2, "checks": False})
    result = evaluate_tensors(trained(n_classes), decoded(30, n_classes), NAMES[:n_classes], chosen)
    score = result.attacks["apgd-ce+dlr"]
    assert score.runs == ("pgd-10", "apgd-ce", last) and score.accuracy < result.clean
    assert f"pgd-10, apgd-ce, {last}" in str(result)


def test_a_choice_that_an_earlier_version_kept_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paced(monkeypatch, 1e-6)
    toy_run(tmp_path)
    (kept,) = tmp_path.glob("sample-*.json")
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "n": 20, "strongest_seconds": 1.0}))
    assert toy_run(tmp_path).n == 20


def test_clean_accuracy_is_told_before_the_attack_and_the_attack_s_so_far(
    monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    chosen = parse_settings({"attacks": "apgd-ce+dlr", "eps": 0.02, "checks": False, "batch_size": 16})
    result = evaluate_tensors(trained(5), decoded(30, 5), NAMES, chosen)
    lines = said()
    assert f"{result.clean:.1f} % of 30 images" in lines[0]
    told = [line for line in lines if "so far" in line]
    parts = [part for part in ("pgd-10", "apgd-ce") if any(part in line for line in told)]
    assert parts == ["pgd-10", "apgd-ce"] and lines.index(told[0]) == 1
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(("limit", "seconds"), [(20, 1.0), ("all", 1.0), (20, 1e-6)])
def test_an_explicit_limit_is_told_how_long_it_takes_if_that_is_long(
    monkeypatch: pytest.MonkeyPatch, said: Said, tmp_path: Path, limit: int | str, seconds: float
) -> None:
    paced(monkeypatch, seconds)
    n = toy_run(tmp_path, limit=limit).n
    lines = [line for line in said() if "at most about" in line and "pgd-5" in line]
    assert len(lines) == (1 if seconds == 1.0 else 0)
    assert n >= 20


def test_what_is_known_so_far_is_a_count_and_no_estimate() -> None:
    seconds, lines = 0.0, []
    so_far = progress.SoFar("pgd-10", total=150, done=50, standing=20, now=lambda: seconds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress.log, "info", lines.append)
        so_far.part("pgd-10", 50, 20)
        assert lines == [], "too early"
        seconds = 10.0
        so_far.part("pgd-10", 50, 20)
        assert "40 of 100" in lines[0] and "50 to come" in lines[0] and "%" not in lines[0]
        so_far.batch(50, 10)
        assert len(lines) == 1, "too soon after the first"
        seconds = 100.0
        so_far.batch(25, 5)
        assert "35 of 125" in lines[1] and "25 to come" in lines[1]
        seconds = 200.0
        so_far.batch(25, 5)
        assert len(lines) == 2, "the table says the rest"


def test_ctrl_c_says_what_is_kept_and_how_to_resume(
    run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin, moved = Keeper.begin, run.rename(tmp_path / "a run")

    def stopping(self: Keeper, part: str) -> None:
        begin(self, part)
        if part == "apgd-margin" or part == "apgd-dlr":
            raise KeyboardInterrupt

    call = ("evaluate", moved, "--eps", "8/255", "--limit", 9, "--device", "cpu")
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "begin", stopping)
        stopped = cli(*call)
    assert (stopped.code, stopped.out) == (130, "")
    assert f"apd evaluate '{moved}' --eps 8/255 --limit 9 --device cpu" in stopped.err.splitlines()[-1]
    assert "images under apgd-ce+dlr" in stopped.err and str(moved / "results") in stopped.err
    assert cli(*call).code == 0
