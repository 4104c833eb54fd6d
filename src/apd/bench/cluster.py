"""The Ray engine: the same jobs on a cluster. Ray starts a killed worker's job again on another."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from apd.bench.job import Report, attempt
from apd.bench.plan import Job
from apd.util.extras import import_extra

DEATHS = 3
"""Workers a job may lose before it counts as failed."""


def import_ray() -> Any:
    """Ray, connected: to the cluster of RAY_ADDRESS or of this machine, else to a new one on this machine.

    Raises:
        InputError: Ray is not installed.
    """
    ray = import_extra("ray", "ray", "--engine ray")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    return ray


def run_ray(jobs: Sequence[Job], folder: Path, *, workers: int, threads: int, gpus: float = 0) -> Iterator[Report]:
    """Do all jobs; yields each report as it comes.

    Args:
        jobs: to do, in this order.
        folder: of the bench, on a file system that all nodes share, as model and data are.
        workers: jobs at a time.
        threads: CPUs asked for, and threads, of each.
        gpus: GPUs asked for, of each; may be a fraction.
    """
    ray = import_ray()
    remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=DEATHS)(attempt)
    todo = list(reversed(jobs))
    running: dict[Any, Job] = {}
    try:
        while todo or running:
            while todo and len(running) < workers:
                job = todo.pop()
                running[remote.remote(job, folder, threads)] = job
            for reference in ray.wait(list(running))[0]:
                job = running.pop(reference)
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayError as error:
                    reason = " ".join(str(error).split())[:200]
                    yield Report(job.id, error=f"Ray gave up on it ({type(error).__name__}: {reason})")
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
