"""Processes that are killed: after some CPU time, or at one of their file operations, in the middle of a write too."""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
"""Audit events of the interpreter that change a folder, besides opening a file to write to it."""
TICK = 0.002


@dataclass(frozen=True)
class Moment:
    """When a process is killed; None and None: never.

    Args:
        cpu: seconds of CPU time that it has used, or its workers together: a busy machine does not change what is reached.
        operation: before its file operation of that number, from 1 on; a write that is under way is cut off.
    """

    cpu: float | None = None
    operation: int | None = None


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Args:
        killed: it, or a worker of it, by us.
        seconds: that it took.
        error: its traceback; empty where there was none.
        operations: file operations it did, where it was not killed.
        cpu: seconds of CPU time that it, or its workers together, used.
    """

    killed: bool
    seconds: float
    error: str = ""
    operations: int = 0
    cpu: float = 0.0


def forked(work: Callable[[], None], folder: Path, moment: Moment, log: Path, *, worker: bool = False) -> Ended:
    """Do some work in a child process, which is killed at a moment.

    Args:
        work: what the child does.
        folder: below which file operations count.
        moment: when it is killed.
        log: for what it prints.
        worker: kill a process that it has started, if there is one then, instead of itself; their CPU time counts.
    """
    started, clock = time.monotonic(), Clock()
    child = os.fork()
    if child == 0:
        _child(work, folder, moment, log)
    killed = False
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        alive = _children(child) if worker else [child]
        if clock.read(alive) >= (math.inf if moment.cpu is None else moment.cpu) and alive and not killed:
            killed = _kill(alive[-1])
        time.sleep(TICK)
    seconds = time.monotonic() - started
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return Ended(True, seconds, cpu=clock.seconds)
    text = log.read_text(encoding="utf-8", errors="replace")
    if os.waitstatus_to_exitcode(status) != 0:
        return Ended(killed, seconds, text[-2000:] or f"status {status}", cpu=clock.seconds)
    last = text.rstrip().rpartition("\n")[2]
    return Ended(killed, seconds, operations=int(last) if last.isdigit() else 0, cpu=clock.seconds)


def _child(work: Callable[[], None], folder: Path, moment: Moment, log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    code = 1
    try:
        operations = Operations(folder, moment.operation)
        work()
        code = 0
        print(f"\n{operations.done}")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Operations:
    """Counts the file operations of this process below a folder, and kills it at one of them.

    Args:
        folder: what happens elsewhere does not count.
        last: the operation that is not done any more; None: all are.
    """

    def __init__(self, folder: Path, last: int | None) -> None:
        self.folder, self.last, self.done = str(folder.resolve()), last, 0
        self.sizes: dict[str, int] = {}
        self._sync = os.fsync
        os.fsync = self._fsync  # no audit event tells of it
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if self._counts(path) and flags & (os.O_WRONLY | os.O_RDWR):
                self.sizes[os.path.realpath(path)] = os.path.getsize(path) if os.path.exists(path) else 0
                self._next()
        elif event in CHANGES and self._counts(arguments[0]):
            self._next()

    def _counts(self, path: object) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.realpath(path).startswith(self.folder)

    def _fsync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.startswith(self.folder):
            self._next(path)
        self._sync(descriptor)

    def _next(self, written: str | None = None) -> None:
        self.done += 1
        if self.done == self.last:
            if written is not None and not os.path.isdir(written):  # only a part of what was written reached the file
                before, now = self.sizes.get(written, 0), os.path.getsize(written)
                os.truncate(written, random.Random(self.last).randint(min(before, now), now))
            os.kill(os.getpid(), signal.SIGKILL)


class Clock:
    """Counts the CPU time of processes, those that have ended included."""

    def __init__(self) -> None:
        self._used: dict[int, float] = {}

    @property
    def seconds(self) -> float:
        """Of all processes together, when they were last read."""
        return sum(self._used.values())

    def read(self, processes: Iterable[int]) -> float:
        """Read the clocks of those that are alive; return the sum of all."""
        for process in processes:
            with suppress(OSError):  # it has ended
                # What clock_getcpuclockid(3) gives for a process.
                self._used[process] = time.clock_gettime((~process << 3) | 2)
        return self.seconds


def _kill(process: int) -> bool:
    """Kill a process; return whether it was there."""
    try:
        os.kill(process, signal.SIGKILL)
    except OSError:
        return False
    return True


def _children(parent: int) -> list[int]:
    """The processes that a process has started and that are alive."""
    try:
        return [int(one) for one in Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []
