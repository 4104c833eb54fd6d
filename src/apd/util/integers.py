"""Whole numbers among the arguments of functions and classes, where no section of settings checks them."""

from __future__ import annotations

from numbers import Integral

from apd.errors import InputError
from apd.util.text import short


def check_whole(value: object, name: str, about: str = "") -> int:
    """Check that a value is a whole number of at least 1; numpy's are, too.

    Args:
        value: what was given.
        name: the argument's.
        about: what it means, to go after "a whole number from 1".

    Raises:
        InputError: anything else.

    >>> check_whole(3, "max_images")
    3
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1:
        return int(value)
    raise InputError(f"{name} must be a whole number from 1{about}, got {short(repr(value))}.")
