"""The local engine: worker processes on this machine, each with its own cores; one that dies is replaced."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path

from apd.bench.job import Report, attempt
from apd.bench.plan import Job

DEATHS = 3
"""Workers a job may lose before it counts as failed."""


class _Worker:
    """A process that does one job at a time."""

    def __init__(self, folder: Path, threads: int, gpu: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.job: Job | None = None
        self.process = context.Process(target=_serve, args=(other, folder, threads, gpu), daemon=True)
        self.process.start()
        other.close()  # so that the worker's death is the end of the file here

    def start(self, job: Job) -> None:
        self.job = job
        with suppress(ConnectionError):  # a death shows when the answer is waited for
            self.connection.send(job)

    def finish(self) -> tuple[Job, Report | None]:
        """The job and what it came to; None where the worker died over it."""
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
    seats = [visible_gpus(gpus)[i % gpus] if gpus else None for i in range(workers)]
    crew: dict[int, _Worker] = {}
    finished = False
    try:
        while todo or any(worker.job for worker in crew.values()):
            for seat, gpu in enumerate(seats):
                if seat in crew and crew[seat].job is None and not crew[seat].process.is_alive():
                    crew.pop(seat).stop()
                if todo and (seat not in crew or crew[seat].job is None):
                    if seat not in crew:
                        crew[seat] = _Worker(folder, threads, gpu)
                    crew[seat].start(todo.popleft())
            busy = {worker.connection: seat for seat, worker in crew.items() if worker.job}
            for connection in wait(list(busy)):
                seat = busy[connection]  # type: ignore[index]
                job, report = crew[seat].finish()
                if report is None:
                    crew.pop(seat).stop()
                    deaths[job.id] += 1
                    if deaths[job.id] < DEATHS:
                        todo.appendleft(job)
                        continue
                    report = Report(job.id, error=f"its worker process died {DEATHS} times (out of memory?)")
                yield report
        finished = True
    finally:
        for worker in crew.values():
            worker.stop(patience=0.0 if finished else 10.0)


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
