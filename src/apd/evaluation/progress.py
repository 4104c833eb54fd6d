"""A bar with the time left, where somebody is watching and it takes long; in a log, a line now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from apd.util.progress import clock, heartbeat, pretty_seconds

PATIENCE = 2.0
"""Seconds before a bar is worth its line."""


@dataclass
class Pace:
    """How far an attack is, and what can be said of the time that is left.

    Args:
        name: the attack's name.
        total: images.
        done: of them, known from an earlier start.
        batch_size: images at a time.
        most: passes of the model on a batch, where no image falls.
        now: seconds of a clock.
    """

    name: str
    total: int
    done: int
    batch_size: int
    most: int
    now: Callable[[], float] = time.monotonic
    part: str = ""
    passes: int = 0

    def __post_init__(self) -> None:
        self.known, self.started = self.done, self.now()
        self.since = self.started

    def begin(self, part: str) -> None:
        """A part of the attack begins."""
        self.part = "" if part == self.name else part

    def look(self, passes: int) -> None:
        """So many passes of the model were made on this batch."""
        self.passes += passes

    def advance(self, images: int) -> None:
        """A batch is done."""
        self.done += images
        self.part, self.passes, self.since = "", 0, self.now()

    def __str__(self) -> str:
        """Say how many images are done, in which part, after what time, and how long it may take."""
        part = f"in {self.part}, " if self.part else ""
        return f"{self.done} of {self.total} images, {part}{clock(self.now() - self.started)}{self._left()}"

    def _left(self) -> str:
        """An estimate. From the batches that are done; within the first one from its passes, as if no image fell."""
        now, left = self.now(), self.total - self.done
        if self.done > self.known:
            seconds = (self.since - self.started) / (self.done - self.known) * left - (now - self.since)
            return f", about {pretty_seconds(seconds)} left" if seconds > 0 else ""
        if not self.passes:
            return ""
        batches = math.ceil(left / self.batch_size)
        seconds = (now - self.started) * (max(1.0, self.most / self.passes) * batches - 1)
        return f", at most about {pretty_seconds(seconds)} left"


@contextmanager
def shown(pace: Pace, title: str, model: nn.Module, quiet: bool) -> Iterator[None]:
    """The pace on standard error, as a bar, or as lines if that is not a terminal; nothing when quiet.

    Args:
        pace: what is shown.
        title: stands before it.
        model: whose passes count.
        quiet: show nothing.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[pace]}"))
    progress = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
    task = progress.add_task(title, total=pace.total, pace="")
    running = False

    def count(_: nn.Module, inputs: tuple[Tensor, ...], __: object) -> None:
        nonlocal running
        pace.look(2 if torch.is_grad_enabled() and inputs[0].requires_grad else 1)
        if progress.disable:
            return
        progress.update(task, completed=pace.done, pace=str(pace))
        if not running and pace.now() - pace.started > PATIENCE:
            progress.start()
            running = True

    hook = model.register_forward_hook(count)
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    try:
        with heartbeat(lambda: f"{title}: {pace}", say, progress.disable and not quiet):
            yield
    finally:
        hook.remove()
        progress.stop()
