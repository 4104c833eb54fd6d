"""Lists among the arguments of functions and classes, where no section of settings checks them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from apd.errors import InputError
from apd.util.text import short


def listed(values: object, name: str) -> tuple[Any, ...]:
    """Return the members of a list, or of anything else that has an order.

    Args:
        values: what was given.
        name: the argument's.

    Raises:
        InputError: a single text, a set or a mapping, or something without members.

    >>> listed(["cat", "dog"], "class_names")
    ('cat', 'dog')
    """
    if isinstance(values, str):
        raise InputError(f"{name} must be a list, got a single text, {short(values)}.")
    if isinstance(values, set | frozenset):
        raise InputError(f"{name} must be a list, got a set, which has no order: {short(values)}.")
    if isinstance(values, Mapping) or not isinstance(values, Iterable):
        raise InputError(f"{name} must be a list, got {short(values)}.")
    return tuple(values)
