"""What goes wrong in a bench costs as little as it can, and what it rests on is told."""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

import apd
from apd.bench import bench, load_suite, make_plan
from apd.bench import job as work
from apd.bench.engines import _Worker
from apd.bench.job import EvalOutcome, Outcome, attempt, do, outcome_file, read_outcome
from apd.bench.plan import Job
from apd.methods.adversarial import AdvVLP

from .command_line import Said
from .refusals import contains, refused
from .suites import InProcess, Write, here

pytestmark = pytest.mark.usefixtures("short_checks")

FEW = {"blocks": [{"protocol": "few-shot", "data": "colours", "methods": ["zero-shot", "advvlp"]}]}


def training(write: Write) -> Job:
    """A job of two steps, with a checkpoint after each."""
    return next(job for job in make_plan(load_suite(write(**FEW))).jobs.values() if job.config is not None)


def marks(outcome: Outcome | None) -> dict[str, Any]:
    assert outcome is not None
    return {key: spec.right for key, spec in outcome.evals.items()}


def count_steps(monkeypatch: pytest.MonkeyPatch, fail: Callable[[int], Exception | None]) -> list[int]:
    """Lets a step fail where ``fail`` of its number gives an error; the list grows by one a step."""
    steps, loss = list[int](), AdvVLP.loss

    def counted(self: AdvVLP, *arguments: Any) -> Any:
        steps.append(1)
        error = fail(len(steps))
        if error is not None:
            raise error
        return loss(self, *arguments)

    monkeypatch.setattr(AdvVLP, "loss", counted)
    return steps


def test_a_second_try_goes_on_from_the_checkpoint(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = training(write)
    whole = do(job, tmp_path / "whole")
    steps = count_steps(monkeypatch, lambda step: RuntimeError("it broke") if step == 2 else None)
    report = attempt(job, tmp_path / "out", 1)
    assert marks(report.outcome) == marks(whole)
    assert len(steps) == 3, "the first step is not done again"


def test_a_training_that_only_lacks_room_keeps_its_checkpoint(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = training(write)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    steps = count_steps(monkeypatch, lambda step: full if step > 1 else None)
    report = attempt(job, tmp_path, 1)
    assert report.error is not None and os.strerror(errno.ENOSPC) in report.error
    assert len(steps) == 3, "one step, and two tries of the next"
    monkeypatch.undo()
    steps = count_steps(monkeypatch, lambda _: None)
    assert attempt(job, tmp_path, 1).outcome is not None and len(steps) == 1


def test_a_failed_evaluation_keeps_the_training_and_its_seconds(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, tries = training(write), list[int]()

    def broken(*_: object, **__: object) -> Any:
        tries.append(1)
        raise RuntimeError("it broke")

    monkeypatch.setattr(work, "evaluate", broken)
    assert attempt(job, tmp_path, 1).error == "RuntimeError: it broke"
    assert len(tries) == 2 and not outcome_file(tmp_path, job.id).exists()
    monkeypatch.undo()
    steps = count_steps(monkeypatch, lambda _: None)
    outcome = do(job, tmp_path)
    manifest = json.loads((tmp_path / "runs" / job.id / "run" / "run.json").read_text())
    assert not steps and outcome.seconds == manifest["seconds"] > 0


def test_lost_prompts_are_trained_again(write: Write, tmp_path: Path) -> None:
    job = training(write)
    whole = do(job, tmp_path)
    outcome_file(tmp_path, job.id).unlink()
    (tmp_path / "runs" / job.id / "run" / "prompts.safetensors").write_bytes(b"nothing")
    assert marks(attempt(job, tmp_path, 1).outcome) == marks(whole)


def test_seconds_of_attacks_in_earlier_starts_count(write: Write, tmp_path: Path) -> None:
    job = training(write)
    do(job, tmp_path)
    outcome_file(tmp_path, job.id).unlink()
    (record,) = (tmp_path / "runs" / job.id / "results").glob("pgd-2-*.jsonl")
    head, *rows = record.read_text().splitlines()
    record.write_text("\n".join([json.dumps({**json.loads(head), "seconds": 50.0}), *rows]) + "\n")
    (spec,) = do(job, tmp_path).evals.values()
    assert 50 <= spec.seconds < 100


def test_outcomes_of_another_version_are_told(write: Write, tmp_path: Path, said: Said) -> None:
    suite, folder = load_suite(write(**FEW)), tmp_path / "out"
    job = training(write)
    bench(suite, folder, machine=here())
    assert apd.__version__ not in " ".join(said()) + (folder / "table.md").read_text()

    file = outcome_file(folder, job.id)
    record = json.loads(file.read_text())
    for spec in record["views"].values():
        assert spec.pop("apd") == apd.__version__  # as files were before evaluations named their version
    file.write_text(json.dumps({**record, "versions": {**record["versions"], "apd": "0.0.1"}}))
    before = len(said())
    again = here()
    assert bench(suite, folder, machine=again) == {} and "done" not in again.__dict__
    assert contains(said()[before], "tiny", "0.0.1", apd.__version__, job.label, "--output")
    footer = f"0.0.1 (advvlp), {apd.__version__} (zero-shot)"
    assert footer in (folder / "table.md").read_text() and footer in (folder / "table.tex").read_text()


def test_versions_are_of_the_training_and_of_the_evaluations_asked_for(tmp_path: Path) -> None:
    evals = {key: EvalOutcome("x", {"clean": "1"}, 1.0, version) for key, version in (("a", "2"), ("b", "3"))}
    outcome = Outcome("job", "job", evals=evals, versions={"apd": "1"})
    assert (outcome.made_with(["a"]), outcome.made_with(["a", "b", "c"])) == ({"1", "2"}, {"1", "2", "3"})
    file = outcome_file(tmp_path, "job")
    file.parent.mkdir()
    old = {"images": "x", "right": {"clean": "1"}, "seconds": 1.0}
    file.write_text(json.dumps({"job": "job", "label": "job", "views": {"a": old}, "versions": {"apd": "1"}}))
    found = read_outcome(tmp_path, "job")
    assert found is not None and found.evals["a"].apd == "1"


def test_a_second_bench_in_the_same_folder_is_refused(write: Write, tmp_path: Path) -> None:
    suite, folder = load_suite(write(**FEW)), tmp_path / "out"

    class Crowded(InProcess):
        """Starts another bench in the middle of the first."""

        def run(self, jobs: Any, place: Path) -> Any:
            with refused(str(folder), "--output"):
                bench(suite, folder, machine=here())
            yield from super().run(jobs, place)

    assert bench(suite, folder, machine=Crowded("local", 1, 1, 0)) == {}
    assert bench(suite, folder, machine=here()) == {}


@pytest.mark.parametrize("sent", [b"", struct.pack("!i", 1000) + b"half an answer"])
def test_worker_that_dies_before_or_within_its_answer_has_no_report(write: Write, sent: bytes) -> None:
    job = next(iter(make_plan(load_suite(write())).jobs.values()))
    worker = _Worker.__new__(_Worker)
    worker.connection, other = Pipe()
    worker.job = job
    if sent:
        worker.connection.send(job)
        assert other.recv() == job
        os.write(other.fileno(), sent)
    other.close()
    assert worker.finish() == (job, None) and worker.job is None
