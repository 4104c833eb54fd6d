"""The Ray engine on a real local cluster of two nodes."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from apd.bench import find_machine, load_suite, make_plan
from apd.bench.work import do
from apd.errors import InputError

from .test_bench_run import Write, write

__all__ = ["write"]


def test_without_ray_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"\[ray\]"):
        find_machine("ray")


@pytest.mark.slow
def test_a_cluster_gives_identical_results_and_takes_a_killed_workers_run_up_again(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    plan = make_plan(load_suite(write()))
    jobs = list(plan.jobs.values())[:3]
    expected = {job.id: {key: view.right for key, view in do(job, tmp_path / "here").views.items()} for job in jobs}
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 otherwise, which on a busy machine is standstill
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        machine = find_machine("ray", workers=2)
        assert (machine.workers, machine.threads, machine.gpus) == (2, 1, 0)
        killed: list[int] = []
        watcher = threading.Thread(target=_kill_first, args=(tmp_path / "out", killed), daemon=True)
        watcher.start()
        reports = {report.job: report for report in machine.run(jobs, tmp_path / "out")}
        watcher.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed
    assert reports.keys() == expected.keys()
    for job, report in reports.items():
        assert report.outcome is not None, report.error
        assert {key: view.right for key, view in report.outcome.views.items()} == expected[job]


def _kill_first(folder: Path, killed: list[int]) -> None:
    """Kill the Ray worker that does a training, as soon as one has begun."""
    deadline = time.monotonic() + 300
    while not any(folder.glob("runs/*/run/run.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    for process in psutil.process_iter(["cmdline"]):
        if any("ray::attempt" in part for part in process.info["cmdline"] or ()):
            os.kill(process.pid, signal.SIGKILL)
            killed.append(process.pid)
            return
