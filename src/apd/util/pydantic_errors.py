"""Pydantic's errors in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "a section of settings",
    "mapping": "a section of settings",
    "model": "a section of settings",
    "path": "a path",
    "none": "empty",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "too_short": "at least {min_length} long",
    "too_long": "at most {max_length} long",
    "string_pattern_mismatch": "text like {pattern}",
    "missing": "given",
    "extra_forbidden": "left out",
    "string_too_short": "at least {min_length} long",
    "string_too_long": "at most {max_length} long",
}
"""What pydantic's kinds of errors ask for, by the kind or how it begins, in plain words."""


def wanted(detail: Mapping[str, Any]) -> str:
    """Say what a value must be, by one of pydantic's errors.

    >>> wanted({"type": "int_parsing", "msg": "Input should be a valid integer, unable to parse string as an integer"})
    'a whole number'
    """
    kind = str(detail["type"])
    names = (kind.rsplit("_", cut)[0] for cut in range(kind.count("_") + 1))
    words = next((_WANTED[name] for name in names if name in _WANTED), None)
    if words is None:
        return str(detail["msg"]).removeprefix("Input should be ")
    context = {
        key: f"{value:g}" if isinstance(value, float) else value for key, value in (detail.get("ctx") or {}).items()
    }
    return words.format(**context)


def complaint(detail: Mapping[str, Any]) -> str:
    """Say where a value is wrong and what it must be, by one of pydantic's errors.

    >>> complaint({"type": "float_type", "loc": ("worst", "accuracy"), "msg": "Input should be a valid number"})
    'worst.accuracy must be a number'
    """
    where = ".".join(map(str, detail["loc"])) or "it"
    cause = (detail.get("ctx") or {}).get("error")
    return f"{where}: {cause}" if cause is not None else f"{where} must be {wanted(detail)}"
