"""Standard output and error as commands need them: there, and able to take any character."""

from __future__ import annotations

import codecs
import io
import os
import sys

ESCAPES = "apd.escapes"
"""Name of the error handler that writes what an encoding lacks as JSON does."""


def prepare_streams() -> None:
    """Open what was closed when the program started, and let no character be an error.

    A closed stream is more than missing: the first file that is opened would take its number, and get what is printed.
    """
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(spare)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    codecs.register_error(ESCAPES, _escapes)
    # Other objects are a notebook's or a test's.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors=ESCAPES)


def _escapes(error: UnicodeError) -> tuple[str, int]:
    r"""Write characters as ``\uXXXX``, so that JSON stays JSON."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2)), error.end


def let_go(stream: str) -> None:
    """Flush a stream; where its reader has gone, drop what is left, which Python would complain of when it ends."""
    try:
        getattr(sys, stream).flush()
    except (OSError, ValueError):
        # OSError: a broken pipe or a full disk; ValueError: closed meanwhile.
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), getattr(sys, stream).fileno())
        except (OSError, ValueError):
            return
