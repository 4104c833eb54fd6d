"""A bar with the time left, where somebody is watching and it takes long; in a log, a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from apd.heartbeat import heartbeat, pretty_seconds

PATIENCE = 2.0
"""Seconds before a bar is worth its line."""


class Advance(Protocol):
    """Tell the bar that so many more samples are done."""

    def __call__(self, samples: int) -> None: ...


@contextmanager
def bar(what: str, total: int, quiet: bool) -> Iterator[Advance]:
    """A bar on standard error for ``total`` samples, or lines where that is no terminal; nothing when quiet."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
    task = progress.add_task(what, total=total)
    started, running, done = time.monotonic(), False, 0

    def advance(samples: int) -> None:
        nonlocal running, done
        done += samples
        progress.advance(task, samples)
        if not running and time.monotonic() - started > PATIENCE:
            progress.start()
            running = True

    def line() -> str:
        return f"{what}: {done} of {total} images, {pretty_seconds(time.monotonic() - started)}"

    try:
        with heartbeat(line, partial(console.print, highlight=False, markup=False), progress.disable and not quiet):
            yield advance
    finally:
        progress.stop()
