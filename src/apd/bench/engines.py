"""The engines: worker processes on this machine, or a Ray cluster. A job whose worker dies is given to another."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from apd.bench.job import Report, attempt
from apd.bench.plan import Job
from apd.util.extras import import_extra
from apd.util.text import one_line

DEATHS = 3
"""Workers a job may lose before it counts as failed."""


class JobQueue:
    """Jobs in the order in which they are begun; one whose worker died comes first again, up to a limit.

    Args:
        jobs: to do.
        deaths: workers a job may lose before it counts as failed.
    """

    def __init__(self, jobs: Sequence[Job], deaths: int = DEATHS) -> None:
        self.waiting, self.limit, self.lost = deque(jobs), deaths, Counter[str]()

    def __bool__(self) -> bool:
        return bool(self.waiting)

    def take(self) -> Job:
        """Take the next job out."""
        return self.waiting.popleft()

    def worker_died(self, job: Job) -> Report | None:
        """Put the job back in front, or report that it failed."""
        self.lost[job.id] += 1
        if self.lost[job.id] >= self.limit:
            return Report(job.id, error=f"its worker process died {self.limit} times (out of memory?)")
        self.waiting.appendleft(job)
        return None


class _Worker:
    """A process that does one job at a time."""

    def __init__(self, folder: Path, threads: int, gpu: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.job: Job | None = None
        self.process = context.Process(target=_serve, args=(other, folder, threads, gpu), daemon=True)
        self.process.start()
        other.close()  # so that the worker's death is the end of the file here

    def finish(self) -> tuple[Job, Report | None]:
        """Receive the job's report; None if the worker died over it."""
        job, self.job = self.job, None
        assert job is not None
        try:
            return job, self.connection.recv()
        except (EOFError, OSError):  # OSError: it died in the middle of its answer
            return job, None

    def stop(self, patience: float = 0.0) -> None:
        self.process.join(patience)
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_local(
    jobs: Sequence[Job], folder: Path, *, workers: int, threads: int, gpus: int = 0, deaths: int = DEATHS
) -> Iterator[Report]:
    """Do all jobs in processes of this machine; yield each report when it comes.

    Args:
        jobs: to do, in this order.
        folder: the bench's.
        workers: number of processes.
        threads: torch threads per process.
        gpus: number of GPUs here; each worker sees one, in turn. 0: runs compute on the CPU.
        deaths: workers a job may lose before it counts as failed.
    """
    queue, at_work = JobQueue(jobs, deaths), dict[int, _Worker]()
    slots = [visible_gpus(gpus)[i % gpus] if gpus else None for i in range(workers)]
    finished = False
    try:
        while queue or any(worker.job for worker in at_work.values()):
            for slot, gpu in enumerate(slots):
                worker = at_work.get(slot)
                if worker is not None and worker.job is None and not worker.process.is_alive():
                    at_work.pop(slot).stop()
                    worker = None
                if queue and (worker is None or worker.job is None):
                    worker = at_work[slot] = worker or _Worker(folder, threads, gpu)
                    worker.job = queue.take()
                    with suppress(ConnectionError):  # a death shows when the answer is awaited
                        worker.connection.send(worker.job)
            busy = {worker.connection: slot for slot, worker in at_work.items() if worker.job}
            for connection in wait(list(busy)):
                slot = busy[connection]  # type: ignore[index]
                job, report = at_work[slot].finish()
                if report is None:
                    at_work.pop(slot).stop()
                    report = queue.worker_died(job)
                if report is not None:
                    yield report
        finished = True
    finally:
        for worker in at_work.values():
            worker.stop(patience=0.0 if finished else 10.0)


def visible_gpus(count: int) -> list[str]:
    """Names of the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(count)]


def _serve(connection: Connection, folder: Path, threads: int, gpu: str | None) -> None:
    """Receive jobs and send reports until the parent is gone."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        while True:
            connection.send(attempt(connection.recv(), folder, threads))
    except (KeyboardInterrupt, EOFError, ConnectionError):
        return


def _die_with_parent() -> None:
    """Leave no worker of a killed bench that would write where the next bench writes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def import_ray() -> Any:
    """Import Ray and connect: to the cluster of RAY_ADDRESS or of this machine, else to a new one on this machine.

    Raises:
        InputError: Ray is not installed.
    """
    ray = import_extra("ray", "ray", "--engine ray")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    return ray


def run_ray(jobs: Sequence[Job], folder: Path, *, workers: int, threads: int, gpus: float = 0) -> Iterator[Report]:
    """Do all jobs on a Ray cluster; yield each report when it comes.

    Args:
        jobs: to do, in this order.
        folder: the bench's, on a file system that all nodes share, as model and data are.
        workers: jobs at a time.
        threads: CPUs asked for, and threads, of each job.
        gpus: GPUs asked for, of each job; may be a fraction.
    """
    ray = import_ray()
    remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(attempt)
    queue, at_work = JobQueue(jobs), dict[Any, Job]()
    try:
        while queue or at_work:
            while queue and len(at_work) < workers:
                job = queue.take()
                at_work[remote.remote(job, folder, threads)] = job
            for reference in ray.wait(list(at_work))[0]:
                job = at_work.pop(reference)
                report: Report | None
                try:
                    report = ray.get(reference)
                except ray.exceptions.RayTaskError as error:  # the job could not even be begun there
                    reason = f"{type(error).__name__}: {one_line(error, 200)}"
                    report = Report(job.id, error=f"Ray gave up on it ({reason})")
                except ray.exceptions.RayError:
                    report = queue.worker_died(job)
                if report is not None:
                    yield report
    finally:
        for reference in at_work:
            ray.cancel(reference, force=True)
