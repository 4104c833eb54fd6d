"""A bar with the time left, where somebody is watching and it takes long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PATIENCE = 2.0
"""Seconds before a bar is worth its line."""


class Advance(Protocol):
    """Tell the bar that so many more samples are done."""

    def __call__(self, samples: int) -> None: ...


@contextmanager
def bar(what: str, total: int, quiet: bool) -> Iterator[Advance]:
    """A bar on standard error for ``total`` samples; nothing when quiet or when nobody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
    task = progress.add_task(what, total=total)
    started, running = time.monotonic(), False

    def advance(samples: int) -> None:
        nonlocal running
        progress.advance(task, samples)
        if not running and time.monotonic() - started > PATIENCE:
            progress.start()
            running = True

    try:
        yield advance
    finally:
        progress.stop()
