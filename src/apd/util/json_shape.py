"""The shape of JSON from elsewhere, checked before anything reads it: a stranger's file may hold anything anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apd.errors import InputError
from apd.util.text import short


@dataclass(frozen=True)
class Each:
    """A list of any length whose entries have a shape."""

    shape: Any


@dataclass(frozen=True)
class Table:
    """A mapping from any texts to values of a shape."""

    shape: Any


TEXT, NUMBER, TRUTH, COUNT = "a text", "a number", "true or false", "a whole number"
"""Shapes of single values; a number is finite."""
_LARGEST = 2**63


def check_shape(value: object, shape: Any, file: Path, way_out: str) -> None:
    """Check the content of a JSON file.

    Args:
        value: the content.
        shape: one of the words above, None, `Each`, `Table`, a mapping of keys to shapes (a key with ``?`` at its end may be
            missing, further keys may be there), or a tuple of shapes one of which fits.
        file: for the message.
        way_out: what to do, for its end.

    Raises:
        InputError: naming the place in the file.
    """
    wrong = _wrong(value, shape, "")
    if wrong:
        raise InputError(f"{file} is damaged ({wrong}); {way_out}.")


def _wrong(value: object, shape: Any, place: str) -> str | None:
    """What is wrong with a value, or None."""
    if isinstance(shape, tuple):
        found = [_wrong(value, option, place) for option in shape]
        return None if None in found else found[-1]
    if isinstance(shape, Mapping):
        if not isinstance(value, Mapping):
            return f"{place or 'the file'} is {short(value, 40)} instead of a mapping"
        return next(filter(None, (_wrong_entry(value, key, inner, place) for key, inner in shape.items())), None)
    if isinstance(shape, Each):
        if not isinstance(value, list):
            return f"{place or 'the file'} is {short(value, 40)} instead of a list"
        return next(filter(None, (_wrong(entry, shape.shape, f"{place}[{i}]") for i, entry in enumerate(value))), None)
    if isinstance(shape, Table):
        if not isinstance(value, Mapping):
            return f"{place or 'the file'} is {short(value, 40)} instead of a mapping"
        entries = ((entry, f"{place}.{short(key, 40)}") for key, entry in value.items())
        return next(filter(None, (_wrong(entry, shape.shape, at) for entry, at in entries)), None)
    return None if _fits(value, shape) else f"{place or 'the file'} is {short(value, 40)} instead of {shape or 'null'}"


def _wrong_entry(value: Mapping[Any, Any], key: str, shape: Any, place: str) -> str | None:
    name = key.removesuffix("?")
    if name not in value:
        return None if key.endswith("?") else f"{f'{place}.{name}'.lstrip('.')} is missing"
    return _wrong(value[name], shape, f"{place}.{name}".lstrip("."))


def _fits(value: object, shape: str | None) -> bool:
    if shape is None:
        return value is None
    if shape == TEXT:
        return isinstance(value, str)
    if shape == TRUTH:
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if shape == COUNT:
        return isinstance(value, int) and abs(value) < _LARGEST
    return abs(value) < _LARGEST if isinstance(value, int) else math.isfinite(value)
