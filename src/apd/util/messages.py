"""Messages for people: `logging` under the name ``apd``, and one handler that prints them on standard error.

Nothing is configured on import. A call from Python attaches the handler for its duration unless the program has set up
logging itself, for ``apd`` or for everything; the command line always does.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from apd.util.text import printable

if TYPE_CHECKING:
    from rich.console import Console

LOGGER = logging.getLogger("apd")
_command: ContextVar[bool] = ContextVar("command", default=False)
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


class StderrHandler(logging.Handler):
    """Prints plain lines, a word before warnings and errors, control characters as escapes.

    Standard error is looked up for each message, because programs and notebooks replace it.
    """

    console: Console | None = None
    """The console with the progress display above which lines must be printed; None: no display."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        try:
            text = "\n".join(map(printable, self.format(record).split("\n")))
            if record.levelno >= logging.WARNING:
                text = f"{record.levelname.capitalize()}: {text}"
            if self.console is None:
                print(text, file=sys.stderr)
            else:
                from rich.text import Text

                self.console.print(Text(text), soft_wrap=True)
        except Exception:
            self.handleError(record)


HANDLER = StderrHandler()


def get_logger(name: str) -> logging.Logger:
    """Get the logger of a module, which says nothing in a call that was asked to be quiet.

    A filter of its own, because a level would hold for other threads too, and a handler's filter for that handler only.
    """
    logger = logging.getLogger(name)
    logger.addFilter(_unless_quiet)
    return logger


def is_quiet() -> bool:
    """Whether this call was asked to show nothing."""
    return _quiet.get()


def _unless_quiet(_: logging.LogRecord) -> bool:
    return not _quiet.get()


@contextmanager
def speaking(quiet: bool = False) -> Iterator[None]:
    """Show the messages and the progress of a call from Python, unless the program has set up logging for itself.

    Args:
        quiet: show nothing at all; calls within this one stay quiet, too.
    """
    token = _quiet.set(_quiet.get() or quiet)
    try:
        with _attachment.held(force=False):
            yield
    finally:
        _quiet.reset(token)


@contextmanager
def command_line() -> Iterator[None]:
    """Print all messages on standard error, whatever a library did to the root logger."""
    token = _command.set(True)
    try:
        with _attachment.held(force=True):
            yield
    finally:
        _command.reset(token)


def by_command(option: str, python: str) -> str:
    """How a way out is written where it is read: as an option in a command, as an argument or attribute in Python."""
    return option if _command.get() else python


def attached() -> bool:
    """Whether our handler prints the messages, so that a progress display may be drawn where it prints."""
    return HANDLER in LOGGER.handlers


class _Attachment:
    """Attaches the handler for as long as any call needs it."""

    def __init__(self) -> None:
        self.lock, self.holders = threading.Lock(), 0
        self.before = (LOGGER.level, LOGGER.propagate)

    @contextmanager
    def held(self, force: bool) -> Iterator[None]:
        with self.lock:
            hold = force or self.holders > 0 or not LOGGER.hasHandlers()
            if hold and not self.holders:
                self._attach()
            self.holders += hold
        try:
            yield
        finally:
            with self.lock:
                self.holders -= hold
                if hold and not self.holders:
                    self._detach()

    def _attach(self) -> None:
        self.before = (LOGGER.level, LOGGER.propagate)
        if LOGGER.level == logging.NOTSET:
            LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False  # a library that sets up the root logger meanwhile would print everything twice
        LOGGER.addHandler(HANDLER)

    def _detach(self) -> None:
        LOGGER.removeHandler(HANDLER)
        LOGGER.setLevel(self.before[0])
        LOGGER.propagate = self.before[1]


_attachment = _Attachment()
