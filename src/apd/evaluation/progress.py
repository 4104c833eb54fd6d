"""How far an attack is: counted in images, and within the first batch in passes of the model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from apd.evaluation.statistics import wilson
from apd.util.messages import get_logger
from apd.util.progress import EVERY, PATIENCE, Count, Progress, clock, counted, pretty_seconds

log = get_logger("apd.evaluation")


class Pace(Count):
    """How far an attack is, and what can be said of the time that is left.

    Args:
        name: the attack's name.
        total: images.
        done: of them, known from an earlier start.
        batch_size: images at a time.
        most: passes of the model on a batch, where no image falls.
        now: seconds of a clock.
    """

    def __init__(
        self,
        name: str,
        total: int,
        done: int,
        batch_size: int,
        most: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(total, "images", done, now)
        self.name, self.batch_size, self.most = name, batch_size, most
        self.part, self.passes = "", 0

    def begin(self, part: str) -> None:
        """A part of the attack begins."""
        self.part = "" if part == self.name else part

    def look(self, passes: int) -> None:
        """So many passes of the model were made on this batch."""
        self.passes += passes

    def advance(self, units: int = 1) -> None:
        """A batch is done."""
        super().advance(units)
        self.part, self.passes = "", 0

    def left(self) -> str:
        """From the batches that are done; within the first one from its passes, as if no image fell."""
        if self.done > self.known or not self.passes:
            return super().left()
        batches = math.ceil((self.total - self.done) / self.batch_size)
        seconds = (self.now() - self.started) * (max(1.0, self.most / self.passes) * batches - 1)
        return f", at most about {pretty_seconds(seconds)} left"

    def __str__(self) -> str:
        """Say how many images are done, in which part, after what time, and how long it may take."""
        part = f"in {self.part}, " if self.part else ""
        return f"{self.done} of {self.total} images done, {part}{clock(self.now() - self.started)}{self.left()}"


class SoFar:
    """Counts the images that withstand an attack before it has finished: at first soon, then every `EVERY` seconds.

    They come in the order of the data, often class by class: their share does not estimate the accuracy of all.

    Args:
        name: the attack's name.
        total: images under attack.
        done: how many were finished in an earlier call.
        standing: finished ones that are still classified rightly.
        now: seconds of a clock.
    """

    def __init__(
        self, name: str, total: int, done: int, standing: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.name, self.total, self.done, self.standing, self.now = name, total, done, standing, now
        self.next = now() + PATIENCE

    def part(self, part: str, tried: int, standing: int) -> None:
        """A part of the attack has been tried on this many images of a batch, and these still stand."""
        self._say(self.done + tried, self.standing + standing, part)

    def batch(self, tried: int, standing: int) -> None:
        """A batch of this many images is done, and these stand."""
        self.done, self.standing = self.done + tried, self.standing + standing
        if self.done < self.total:
            self._say(self.done, self.standing, self.name)

    def _say(self, done: int, standing: int, what: str) -> None:
        if not done or self.now() < self.next:
            return
        self.next = self.now() + EVERY
        to_come = f"; {self.total - done} to come, in the data's order" if done < self.total else ""
        log.info(f"  so far {standing} of {done} images withstand {what}{to_come}")


def say_clean(right: int, n: int, on: str) -> None:
    """Say the accuracy without an attack, which is known long before the others."""
    low, high = (100 * end for end in wilson(right, n))
    log.info(f"  clean accuracy{on}: {100 * right / n:.1f} % of {counted(n, 'image')} ({low:.1f} - {high:.1f})")


@contextmanager
def shown(pace: Pace, title: str, model: nn.Module) -> Iterator[None]:
    """Show the pace while an attack runs, and count the passes of the model."""

    def count(_: nn.Module, inputs: tuple[Tensor, ...], __: object) -> None:
        pace.look(2 if torch.is_grad_enabled() and inputs[0].requires_grad else 1)

    hook = model.register_forward_hook(count)
    try:
        with Progress(title, pace):
            yield
    finally:
        hook.remove()
