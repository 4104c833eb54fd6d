"""What the engines share: the queue, the limit of deaths, and one CLIP per process."""

from __future__ import annotations

from pathlib import Path

import pytest

from apd.bench import load_suite, make_plan
from apd.bench.engines import JobQueue
from apd.bench.job import do
from apd.bench.loaded import encoder
from apd.models import load_clip

from .models import save_clip
from .refusals import contains
from .suites import Write


def test_a_job_that_lost_its_worker_comes_first_again_up_to_the_limit(write: Write) -> None:
    first, second, *_ = make_plan(load_suite(write())).jobs.values()
    queue = JobQueue([first, second], deaths=2)
    assert queue.take() is first
    assert queue.worker_died(first) is None and queue.take() is first
    report = queue.worker_died(first)
    assert report is not None and (report.job, report.outcome) == (first.id, None)
    assert contains(str(report.error), "2"), "how often its worker died"
    assert queue and queue.take() is second and not queue


def test_plan_and_jobs_load_each_clip_once(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, teacher = (str(save_clip(tmp_path / name, seed=seed)) for name, seed in (("clip", 5), ("teacher", 6)))
    loads = list[str]()

    def counted(source: str, **options: object) -> object:
        loads.append(source)
        return load_clip(source, **options)  # type: ignore[arg-type]

    for module in ("models.shared", "training.start", "runs.load"):
        monkeypatch.setattr(f"apd.{module}.load_clip", counted)
    encoder.cache_clear()
    methods = {"zero-shot": None, "advvlp": "advvlp", "taught": {"name": "apd", "teacher_model": teacher}}
    block = {"protocol": "few-shot", "data": "colours", "methods": list(methods)}
    for job in make_plan(load_suite(write(model=model, methods=methods, blocks=[block]))).jobs.values():
        do(job, tmp_path / "out")
    assert sorted(loads) == sorted([model, teacher])
