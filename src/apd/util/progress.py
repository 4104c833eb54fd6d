"""The progress display: a bar on a terminal or in a notebook, and in a log a line now and then."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from apd.util import messages
from apd.util.messages import HANDLER, LOGGER
from apd.util.notebook import NotebookDisplay
from apd.util.text import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

T = TypeVar("T")
EVERY = 30.0
"""Seconds between two lines in a log."""
PATIENCE = 2.0
"""Seconds before a bar that will vanish again is worth its line."""

_BAR = 10
"""Columns of the narrowest bar."""

log = messages.get_logger("apd.progress")
_display = threading.Lock()
"""Held by the display that is shown: one inside another would overwrite it."""


class Count:
    """How far a piece of work is, and how long the rest takes at the pace so far.

    Args:
        total: number of units.
        unit: their name, in the plural; may be empty.
        done: units known from an earlier start.
        now: seconds of a clock.
        then: how long the work that follows takes, in these units; it counts in the time left.
    """

    def __init__(
        self,
        total: int,
        unit: str = "",
        done: int = 0,
        now: Callable[[], float] = time.monotonic,
        then: float | None = None,
    ) -> None:
        self.total, self.unit, self.done, self.now, self.then = total, unit, done, now, then
        self.known, self.started = done, now()
        self.since = self.started

    def advance(self, units: int = 1) -> None:
        """Record that more units are done."""
        self.done += units
        self.since = self.now()

    def left(self) -> str:
        """Say how long the rest may take; empty while that is unknown."""
        if self.done <= self.known:
            return ""
        pace = (self.since - self.started) / (self.done - self.known)
        seconds = pace * (self.total - self.done + (self.then or 0)) - (self.now() - self.since)
        return f", about {pretty_seconds(seconds)} left{' in all' if self.then else ''}" if seconds > 0 else ""

    def __str__(self) -> str:
        """Say how many units are done, after what time, and how long it may take."""
        return (
            f"{self.done} of {self.total} {self.unit}".rstrip() + f", {clock(self.now() - self.started)}{self.left()}"
        )


class Progress:
    """Shows on standard error how far a piece of work is, from a thread: one unit may take long.

    A bar is drawn only if our own handler prints the messages (see `apd.util.messages`), or in a notebook; otherwise
    the program's own log gets a line every `EVERY` seconds.

    Args:
        title: what is done; may be empty.
        count: how far it is.
        keep: show a bar at once, and leave it there; otherwise it comes after `PATIENCE` and vanishes.
        table: what is shown in place of the bar.
    """

    def __init__(
        self, title: str, count: Count, *, keep: bool = False, table: Callable[[], RenderableType] | None = None
    ) -> None:
        self.title, self.count, self.keep, self.render = title, count, keep, table or self._bar
        self.status = ""
        """Stands beside the bar."""
        self._live: Live | NotebookDisplay | None = None
        self._thread: threading.Thread | None = None
        self._end = threading.Event()

    def __enter__(self) -> Progress:
        if messages.is_quiet() or not _display.acquire(blocking=False):
            return self
        console = _canvas()
        if console is not None:
            self._prepare(console)
            if self.keep or PATIENCE <= 0:
                self._draw()
        if console is None or not self.keep:
            self._thread = threading.Thread(target=self._speak if console is None else self._wait, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        if self._live is not None:
            HANDLER.console = None
            self._live.stop()
        if self._thread is not None or self._live is not None:
            self._thread = self._live = None
            _display.release()

    def _prepare(self, console: Console) -> None:
        if console.is_jupyter:
            self._live = NotebookDisplay(self.render, not self.keep)
            return
        from rich.live import Live

        # What others print on a terminal must not tear the display; in a file it stays what it is.
        redirect = sys.stdout.isatty()
        self._live = Live(
            console=console, get_renderable=self.render, transient=not self.keep, redirect_stdout=redirect
        )

    def _draw(self) -> None:
        assert self._live is not None
        HANDLER.console = self._live.console
        self._live.start(refresh=True)

    def _wait(self) -> None:
        if not self._end.wait(PATIENCE):
            self._draw()

    def _speak(self) -> None:
        while not self._end.wait(EVERY):
            log.info(f"{self.title}: {self.count}" if self.title else str(self.count))

    def _bar(self) -> RenderableType:
        """Title, bar and count on one line, or the count on a second one where they would not all be seen."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        title, count = printable(self.title), printable(f"{self.count} {self.status}".rstrip())
        console = None if self._live is None else self._live.console
        columns = 80 if console is None else console.width
        room = columns - len(title) - len(count) - 2
        bar = ProgressBar(total=max(1, self.count.total), completed=self.count.done, width=max(_BAR, min(40, room)))
        grid = Table.grid(padding=(0, 1))
        if room >= _BAR:
            grid.add_row(Text(title), bar, Text(count))
            return grid
        if len(title) + 1 + _BAR > columns:
            return Group(Text(title), Text(f"  {count}"))
        grid.add_row(Text(title), bar)
        return Group(grid, Text(f"  {count}"))


def watched(items: Iterable[T], total: int, title: str, unit: str = "") -> Iterator[T]:
    """Pass the items on, and show how many are done once it takes long."""
    with Progress(title, Count(total, unit)) as progress:
        for item in items:
            yield item
            progress.count.advance()


def _canvas() -> Console | None:
    """The console to draw on; None: progress is told in lines."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_jupyter:
        # Its platform may have set up logging (Colab does), which says nothing about what the person wants to see.
        wanted = LOGGER.level == logging.NOTSET or LOGGER.isEnabledFor(logging.INFO)
        return console if wanted else None
    return console if messages.attached() and LOGGER.isEnabledFor(logging.INFO) and console.is_interactive else None


def clock(seconds: float) -> str:
    """Time gone by, to the second, so that two lines differ.

    >>> clock(42), clock(130), clock(3725)
    ('42 s', '2 min 10 s', '1 h 2 min 5 s')
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (hours > 0 or minutes > 0)
    return " ".join([*parts, f"{rest} s"])


def all_of(n: int) -> str:
    """Say that it is all of so many.

    >>> all_of(15), all_of(1)
    ('all 15', '1 of 1')
    """
    return f"all {n}" if n > 1 else f"{n} of {n}"


def counted(n: int, what: str) -> str:
    """A number of things, with a plural in ``s``.

    >>> counted(1, "run"), counted(2, "run")
    ('1 run', '2 runs')
    """
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def pretty_seconds(seconds: float) -> str:
    """A time that is estimated, for a person.

    >>> pretty_seconds(42), pretty_seconds(600), pretty_seconds(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
