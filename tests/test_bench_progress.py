"""The predicted cost, and what a person sees while a bench runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from apd.bench import load_suite, make_plan
from apd.bench.estimate import NOT_FOOLED, OVERHEAD, Forecast, Pace, calibrate, eval_seconds, training_seconds
from apd.bench.job import EvalOutcome, Outcome, Report
from apd.bench.plan import Job, Plan
from apd.bench.progress import BenchProgress
from apd.evaluation.checks import CHECK_PASSES
from apd.runs.config import RunConfig, validate
from apd.settings.layers import merged

from .command_line import Said
from .refusals import contains
from .suites import Write

PACE = Pace(image=0.01, text=0.1)


def jobs_of(write: Write) -> tuple[Plan, Job, Job]:
    plan = make_plan(load_suite(write()))
    untrained, trained = list(plan.jobs.values())[:2]
    return plan, untrained, trained


def outcome(job: Job, seconds: float) -> Outcome:
    evals = {key: EvalOutcome("x", {"clean": "1110", "pgd-2": "1000", "worst": "1000"}, seconds) for key in job.evals}
    return Outcome(job.id, job.label, seconds=seconds if job.config else 0.0, evals=evals)


def changed(job: Job, sections: dict[str, Any]) -> RunConfig:
    """The settings of a job with some sections' values changed, and the method's replaced."""
    assert job.config is not None
    return validate(merged(job.config.model_dump(mode="json", exclude={"method"}), sections))


def test_cost_is_counted_in_passes(write: Write) -> None:
    _, untrained, trained = jobs_of(write)
    # 3 classes x 2 shots in batches of 4: one PGD step, the clean and the adversarial pass; text forward and back.
    assert training_seconds(trained, PACE) == pytest.approx(6 * 3 * 0.01 + 2 * 3 * 3 * 0.1)
    assert training_seconds(untrained, PACE) == 0
    text = 2 * 3 * 3 * 0.1
    for method, train, passes in [
        ("vlp", {}, 1),
        ("advvlp", {"kind": "n-fgsm"}, 3),
        ("advvlp", {"kind": "carried"}, 2),
    ]:
        other = replace(trained, config=changed(trained, {"method": {"name": method}, "train": {"attack": train}}))
        assert training_seconds(other, PACE) == pytest.approx(6 * passes * 0.01 + text)
    longer = replace(trained, config=changed(trained, {"train": {"steps": 10}}))
    assert training_seconds(longer, PACE) == pytest.approx(5 * training_seconds(trained, PACE)), "an epoch is two steps"
    zero_shot = replace(trained, config=changed(trained, {"method": {"name": "zero-shot"}}))
    assert training_seconds(zero_shot, PACE) == 0
    (spec,) = trained.evals.values()
    checks = 6 * CHECK_PASSES / 2
    assert eval_seconds(trained, spec, PACE) == pytest.approx(0.01 * (6 * (1 + 2 * NOT_FOOLED) + checks))


def test_finished_runs_correct_the_forecast(write: Write) -> None:
    plan, untrained, trained = jobs_of(write)
    (spec,) = untrained.evals.values()
    estimated = eval_seconds(untrained, spec, PACE)
    slow = Forecast.of({untrained.model: PACE}, plan.jobs.values(), {untrained.id: outcome(untrained, 5 * estimated)})
    assert slow.ratio == pytest.approx(5)
    assert Forecast.of({untrained.model: PACE}, plan.jobs.values(), {}).ratio == 1
    whole = slow.seconds(trained, None) - OVERHEAD
    assert whole == pytest.approx(5 * (training_seconds(trained, PACE) + estimated))
    assert slow.seconds(trained, outcome(trained, 1.0)) == OVERHEAD


def test_calibration_measures_a_pace(clip_folder: Path) -> None:
    pace = calibrate(str(clip_folder), "cpu", 1)
    assert 0 < pace.image < 10 and 0 < pace.text < 10


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let so many seconds pass, as the progress sees it."""
    now = 1000.0

    def pass_by(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("apd.bench.progress.time", SimpleNamespace(monotonic=lambda: now))
    return pass_by


def test_before_a_run_is_finished_the_estimate_alone_speaks(write: Write, wait: Callable[[float], None]) -> None:
    plan = make_plan(load_suite(write()))
    # Sums of these depend on the order: 1e16 swallows what comes after it, one by one.
    expected = {"long": 1e16, **{f"short {i}": 1.0 for i in range(30)}}
    progress = BenchProgress(plan, expected, 1)
    wait(30)
    assert progress.seconds_left() == pytest.approx(1e16)
    progress = BenchProgress(plan, {"a": 10.0, "b": 30.0, "c": 20.0, "d": 30.0}, 2)
    wait(15)  # a should be done, but is not: what it overruns is not taken off the others
    assert progress.seconds_left() == (15 + 20 + 30) / 2


def test_the_pace_is_that_of_finished_runs(write: Write, wait: Callable[[float], None]) -> None:
    plan, untrained, trained = jobs_of(write)
    others = [job for job in plan.jobs if job not in (untrained.id, trained.id)]
    progress = BenchProgress(plan, {untrained.id: 10.0, trained.id: 20.0, **dict.fromkeys(others, 10.0)}, 2)
    wait(20)
    progress.finished(Report(untrained.id, outcome(untrained, 1.0)))
    # Twice as slow as expected: 20 s left of the run under way, 20 s of each other one, shared by two.
    assert progress.seconds_left() == (20 + 20 * len(others)) / 2
    wait(5)
    progress.finished(Report(others[0], error="it broke"))  # at once, which makes nothing faster
    assert progress.seconds_left() == (15 + 20 * (len(others) - 1)) / 2
    wait(5)
    for job in others[1:]:
        progress.finished(Report(job, error="it broke"))
    assert progress.seconds_left() == 10, "one run cannot be shared"


def test_every_run_is_a_line_in_a_pipe(write: Write, said: Said) -> None:
    plan, untrained, trained = jobs_of(write)
    progress = BenchProgress(plan, {untrained.id: 10.0, trained.id: 30.0}, 1)
    assert 39 < progress.seconds_left() <= 40
    progress.finished(Report(untrained.id, outcome(untrained, 1.0)))
    progress.finished(Report(trained.id, error="RuntimeError: it broke"))
    assert said()[0].startswith("[1/2] zero-shot on colours: ") and contains(said()[0], "75.0", "25.0")
    assert said()[1].startswith(f"[2/2] {trained.label}: ") and said()[1].endswith("RuntimeError: it broke")


def test_the_live_table_counts_runs_by_protocol_and_data(write: Write) -> None:
    plan, untrained, trained = jobs_of(write)
    progress = BenchProgress(plan, dict.fromkeys(plan.jobs, 60.0), 2)
    progress.finished(Report(untrained.id, outcome(untrained, 1.0)))
    progress.finished(Report(trained.id, error="broken"))
    console = Console(width=100)
    with console.capture() as capture:
        console.print(progress._table())
    shown = capture.get()
    assert contains(shown.splitlines()[0], "3", "2"), "runs to do and workers"
    row = next(line for line in shown.splitlines() if "few-shot" in line)
    assert [part.strip() for part in row.strip("│ ").split("│")] == ["few-shot", "colours", "5", "1", "1"]
