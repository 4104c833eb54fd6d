"""Processes of their own for tests, without seconds of imports each: forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

from apd.cli import main

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["tests.training", "tests.models", "rich.progress", "apd.serve.server", "benchmarks.serve"]
)
STREAMS = {1: "stdout", 2: "stderr"}


class Forked:
    """A function in a process of its own, seen as `subprocess.Popen` shows one; the end of its output is read as text.

    Args:
        function: with its arguments; it and they can be pickled.
        descriptor: 1 or 2, what is read here: standard output or standard error.
    """

    def __init__(self, function: Callable[..., object], *arguments: object, descriptor: int = 1) -> None:
        here, there = FORKED.Pipe(duplex=False)
        self._process = FORKED.Process(target=_run, args=(there, descriptor, function, arguments), daemon=True)
        self._process.start()
        there.close()
        self.output = self.stdout = os.fdopen(os.dup(here.fileno()), encoding="utf-8")
        here.close()
        self.pid = self._process.pid or 0
        self.kill, self.terminate = self._process.kill, self._process.terminate

    def wait(self, timeout: float | None = None) -> int | None:
        """Return the exit code; None if it runs on after ``timeout`` seconds."""
        self._process.join(timeout)
        return self._process.exitcode


def _run(there: Connection, descriptor: int, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    os.dup2(there.fileno(), descriptor)
    there.close()
    # Python's own stream may still believe that it writes to a file.
    setattr(sys, STREAMS[descriptor], os.fdopen(descriptor, "w", encoding="utf-8", buffering=1, closefd=False))
    function(*arguments)


def command(*words: object) -> None:
    """Run `apd` with these arguments."""
    sys.argv = ["apd", *map(str, words)]
    main()
