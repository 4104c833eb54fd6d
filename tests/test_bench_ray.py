"""The Ray engine on a real local cluster of two nodes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from apd.bench import Machine, bench, find_machine, load_suite, make_plan
from apd.bench.job import do
from apd.util.extras import install_command

from .refusals import refused
from .suites import Write, rights, table_rows


def test_without_ray_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with refused(install_command("ray")):
        find_machine("ray")


def test_no_run_asks_for_more_threads_than_a_node_has(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 16.0}}] * 4 + [{"Alive": False, "Resources": {"CPU": 64.0}}]
    ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 64.0}, nodes=lambda: nodes)
    monkeypatch.setattr("apd.bench.runner.import_ray", lambda: ray)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [find_machine("ray", workers=n).threads for n in (1, 2, 4, 8)] == [16, 16, 16, 8]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machine]:
    """Two nodes of one CPU each."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # 15 otherwise, which on a busy machine is standstill
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            nodes.add_node(num_cpus=1)
            ray.init(address=nodes.address, log_to_driver=False)
            assert len([node for node in ray.nodes() if node["Alive"]]) == 2
            yield find_machine("ray", workers=2)
        finally:
            ray.shutdown()
            nodes.shutdown()


@pytest.mark.slow
def test_a_suite_gives_the_same_on_a_cluster_as_by_the_local_engine(
    cluster: Machine, write: Write, tmp_path: Path
) -> None:
    assert (cluster.workers, cluster.threads, cluster.gpus) == (2, 1, 0)
    suite = load_suite(write(final={"attacks": "pgd-3", "limit": 4, "best": 1}))
    assert bench(suite, tmp_path / "ray", machine=cluster) == {}
    assert bench(suite, tmp_path / "local", machine=Machine("local", 2, 1, 0)) == {}
    assert len(rights(tmp_path / "ray")) == 5
    assert rights(tmp_path / "ray") == rights(tmp_path / "local")
    one, other = ([{**row, "seconds": ""} for row in table_rows(tmp_path / name)] for name in ("ray", "local"))
    assert one == other
    assert (tmp_path / "ray" / "table.md").read_text() == (tmp_path / "local" / "table.md").read_text()


@pytest.mark.slow
def test_a_killed_workers_run_is_taken_up_again_on_a_cluster(cluster: Machine, write: Write, tmp_path: Path) -> None:
    plan = make_plan(load_suite(write()))
    jobs = [job for job in plan.jobs.values() if job.config is not None][:2]
    expected = {job.id: {key: spec.right for key, spec in do(job, tmp_path / "here").evals.items()} for job in jobs}
    killed: list[int] = []
    watcher = threading.Thread(target=_kill_first, args=(tmp_path / "out", killed), daemon=True)
    watcher.start()
    reports = {report.job: report for report in cluster.run(jobs, tmp_path / "out")}
    watcher.join()
    assert killed
    assert reports.keys() == expected.keys()
    for job, report in reports.items():
        assert report.outcome is not None, report.error
        assert {key: spec.right for key, spec in report.outcome.evals.items()} == expected[job]


def _kill_first(folder: Path, killed: list[int]) -> None:
    """Kill a Ray worker as soon as it has begun a training."""
    deadline = time.monotonic() + 300
    while not any(folder.glob("runs/*/run/run.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    for process in psutil.Process().children(recursive=True):
        if "ray::attempt" in " ".join(process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
            killed.append(process.pid)
            return
