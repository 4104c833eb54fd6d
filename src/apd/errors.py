"""Errors for people: what was wrong, where it came from, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ApdError(Exception):
    """Something failed that is not the caller's doing (exit code 1)."""

    exit_code = 1


class InputError(ApdError, ValueError):
    """Wrong usage or wrong input (exit code 2).

    The message is one line: the value, where it came from, and the way out.
    """

    exit_code = 2


def nearest(name: str, known: Iterable[str], listed: Iterable[str] | None = None) -> str:
    """The way out for an unknown name: the nearest known one, or all of them (as ``listed``, where they stand for many).

    >>> nearest("apgd-cc", ["pgd-10", "apgd-ce"])
    'Did you mean apgd-ce?'
    >>> nearest("zzz", ["apd", "advvlp"])
    'Known: apd, advvlp.'
    """
    options = list(known)
    close = difflib.get_close_matches(name, options, n=max(1, len(options)))
    # Swapped letters are the likeliest slip.
    close.sort(key=lambda option: sorted(option) != sorted(name))
    return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(listed or options)}."
