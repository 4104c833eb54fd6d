"""A sign of life for who reads a log instead of watching a terminal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 30.0
"""Seconds between two lines."""


@contextmanager
def heartbeat(line: Callable[[], str], say: Callable[[str], None], wanted: bool = True) -> Iterator[None]:
    """Say ``line()`` every `EVERY` seconds, from a thread: a single batch of an attack may take longer than that.

    Args:
        line: what to say by then.
        say: takes a line.
        wanted: False for silence.
    """
    done = threading.Event()

    def beat() -> None:
        while not done.wait(EVERY):
            say(line())

    thread = threading.Thread(target=beat, daemon=True)
    if wanted:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if wanted:
            thread.join()


def clock(seconds: float) -> str:
    """Time gone by, to the second, so that two lines differ.

    >>> clock(42), clock(130), clock(3725)
    ('42 s', '2 min 10 s', '1 h 2 min 5 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (hours > 0 or minutes > 0)
    return " ".join([*parts, f"{rest} s"])


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
