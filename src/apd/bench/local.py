"""The local engine: worker processes on this machine, each with its own cores; one that dies is replaced."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from apd.bench.plan import Job
from apd.bench.work import Report, attempt

DEATHS = 3
"""Workers a job may lose before it counts as failed."""


class _Worker:
    """A process that does one job at a time."""

    def __init__(self, folder: Path, threads: int, gpu: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.gpu = gpu
        self.job: Job | None = None
        self.process = context.Process(target=_serve, args=(other, folder, threads, gpu), daemon=True)
        self.process.start()
        other.close()  # so that the worker's death is the end of the file here

    def start(self, job: Job) -> None:
        self.job = job
        self.connection.send(job)

    def report(self) -> Report | None:
        """What the job came to; None where the worker died over it."""
        try:
            report: Report = self.connection.recv()
        except (EOFError, ConnectionError):
            return None
        return report

    def stop(self, patience: float = 0.0) -> None:
        self.process.join(patience)
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_local(jobs: Sequence[Job], folder: Path, *, workers: int, threads: int, gpus: int = 0) -> Iterator[Report]:
    """Do all jobs; yields each report as it comes.

    Args:
        jobs: to do, in this order.
        folder: of the bench.
        workers: processes.
        threads: of each.
        gpus: that are here; workers take turns in seeing one each. 0: runs compute on the CPU.
    """
    todo, deaths = deque(jobs), Counter[str]()
    devices = [visible_gpus(gpus)[i % gpus] if gpus else None for i in range(min(workers, len(jobs)))]
    crew = [_Worker(folder, threads, gpu) for gpu in devices]
    interrupted = True
    try:
        while todo or any(worker.job for worker in crew):
            for worker in crew:
                if worker.job is None and todo:
                    worker.start(todo.popleft())
            busy = {worker.connection: worker for worker in crew if worker.job}
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                job, report = worker.job, worker.report()
                assert job is not None
                worker.job = None
                if report is None:
                    worker.stop()
                    crew[crew.index(worker)] = _Worker(folder, threads, worker.gpu)
                    deaths[job.id] += 1
                    if deaths[job.id] < DEATHS:
                        todo.appendleft(job)
                        continue
                    report = Report(job.id, error=f"its worker process died {DEATHS} times (out of memory?)")
                yield report
        interrupted = False
    finally:
        for worker in crew:
            worker.stop(patience=10.0 if interrupted else 0.0)


def visible_gpus(count: int) -> list[str]:
    """Names of the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(count)]


def _serve(connection: Connection, folder: Path, threads: int, gpu: str | None) -> None:
    """A worker's life: jobs in, reports out, until its parent is gone."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        while True:
            connection.send(attempt(connection.recv(), folder, threads))
    except (KeyboardInterrupt, EOFError, ConnectionError):
        return


def _die_with_parent() -> None:
    """A bench that is killed leaves no worker behind that would write where the next bench writes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
