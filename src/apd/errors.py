"""Errors for people: what was wrong, where it came from, and the way out."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from typing import Any

JOINERS = "\u200c\u200d"
"""Invisible characters with which Persian, Hindi and emoji are spelled."""


class ApdError(Exception):
    """Something failed that is not the caller's doing (exit code 1)."""

    exit_code = 1

    def __str__(self) -> str:
        """The message on one line, control characters as escapes: names and values in it may be a stranger's."""
        text = " ".join(super().__str__().split())
        return (
            text
            if text.isprintable()
            else "".join(c if c.isprintable() or c in JOINERS else ascii(c)[1:-1] for c in text)
        )

    def _render_traceback_(self) -> list[str]:
        """What IPython shows, in notebooks too: the message on one line; after ``%xmode Verbose`` the traceback."""
        shown: Any = sys.modules["IPython"].get_ipython().InteractiveTB
        if shown.mode == "Verbose":
            lines: list[str] = shown.structured_traceback(type(self), self, self.__traceback__)
            return lines
        return [f"{type(self).__name__}: {self}"]


class InputError(ApdError, ValueError):
    """Wrong usage or wrong input (exit code 2).

    The message is one line: the value, where it came from, and the way out.
    """

    exit_code = 2


def nearest(name: str, known: Iterable[str], listed: Iterable[str] | None = None) -> str:
    """The way out for an unknown name: the nearest known one, or all of them (as ``listed``, where they stand for many).

    Upper and lower case are alike, and of dotted names in one section only the last words are compared.

    >>> nearest("apgd-cc", ["pgd-10", "apgd-ce"])
    'Did you mean apgd-ce?'
    >>> nearest("zzz", ["apd", "advvlp"])
    'Known: apd, advvlp.'
    >>> nearest("method.beta", ["method.weight", "method.Betas"])
    'Did you mean method.Betas?'
    """
    options = list(known)
    section, dot, _ = name.rpartition(".")
    words = [(option.removeprefix(f"{section}{dot}").lower(), option) for option in options]
    word = name.removeprefix(f"{section}{dot}").lower()
    close = difflib.get_close_matches(word, [other for other, _ in words], n=max(1, len(words)))
    # Swapped letters are the likeliest slip.
    close.sort(key=lambda other: sorted(other) != sorted(word))
    if not options:
        return "None is known."
    return f"Did you mean {dict(words)[close[0]]}?" if close else f"Known: {', '.join(listed or options)}."


def check_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Check that all names are known.

    Raises:
        InputError: the first that is not, ``what`` being what is named, with the way out.
    """
    options = dict.fromkeys(known)
    for name in names:
        if name not in options:
            raise InputError(f"no {what} {name!r}. {nearest(name, options)}")
