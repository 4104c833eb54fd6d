"""Explain pydantic's errors in one line, for any class of settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from apd.errors import nearest
from apd.util.pydantic_errors import wanted
from apd.util.text import short

MEMBER = "*"
"""Stands in names of settings for any key of a mapping and any index of a list."""


def setting_names(model: type[BaseModel], flat: Mapping[str, type[BaseModel]] | None = None) -> list[str]:
    """List the dotted names of all settings and sections below a class of settings.

    Args:
        model: the outermost class.
        flat: dotted names of sections that are written without their own name, beside their neighbours, to the class
            of what is in them.
    """
    return list(_names(model, flat or {}, "", ""))


def _names(model: type[BaseModel], flat: Mapping[str, type[BaseModel]], written: str, full: str) -> Iterator[str]:
    for field, about in model.model_fields.items():
        if f"{full}{field}" in flat:
            yield from _names(flat[f"{full}{field}"], flat, written, f"{full}{field}.")
            continue
        yield f"{written}{field}"
        below, inner = _content(about.annotation)
        if inner is not None:
            yield from _names(inner, flat, f"{written}{field}.{below}", f"{full}{field}.{below}")
        elif below:
            yield f"{written}{field}.{below}"


def _content(annotation: Any) -> tuple[str, type[BaseModel] | None]:
    """What stands between a field's name and the names in it, and the class that has these; None for plain values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "", annotation
    found = [_content(argument) for argument in get_args(annotation)]
    inner = next((model for _, model in found if model is not None), None)
    if get_origin(annotation) in (dict, list, tuple):
        return (MEMBER if inner is None else f"{MEMBER}."), inner
    return next((below for below, _ in found if below), ""), inner


def explain(
    error: ValidationError,
    names: Collection[str],
    *,
    places: Mapping[str, str] | None = None,
    main: Mapping[str, str] | None = None,
    missing: Callable[[str], str] = "The setting {!r} is missing.".format,
) -> str:
    """Explain the first of the errors in one line, and say how many more there are.

    Args:
        error: from the class of settings.
        names: its `setting_names`.
        places: dotted names to where their values came from.
        main: section to its main setting, which a bare word in place of the section stands for.
        missing: the line for a required setting that is not given.
    """
    details = error.errors(include_url=False)
    first = details[0]
    name, known = _located(first["loc"], names)
    cause = (first.get("ctx") or {}).get("error")
    source = source_of(error, names, places or {}, main) or ""
    place = f" (from {source})" if source else ""
    if first["type"] == "extra_forbidden":
        message = f"Unknown setting {name!r}{place}. {_hint(name, known, names)}"
    elif first["type"] == "missing":
        message = missing(name)
    elif cause is not None:
        message = f"{source}: {cause}" if source else str(cause)
    else:
        alike = [wanted(each) for each in details if _located(each["loc"], names)[0] == name]
        message = f"{name}{place} must be {' or '.join(dict.fromkeys(alike))}, got {short(first['input'])}."
    # A list is called too short, too, because of the member that is wrong in it.
    own = [each for each in details if each["type"] != "too_short" or each["loc"] != first["loc"][: len(each["loc"])]]
    others = {_located(each["loc"], names)[0] for each in own} - {name}
    return f"{message} (And {len(others)} more.)" if others else message


def source_of(
    error: ValidationError, names: Collection[str], places: Mapping[str, str], main: Mapping[str, str] | None = None
) -> str | None:
    """Find where the setting of the first error came from; None if no place holds it.

    Of several places: that of a part of it which the message names, else of its main setting, else the place with the
    longest name around it.
    """
    first = error.errors(include_url=False)[0]
    name, _ = _located(first["loc"], names)
    cause = str((first.get("ctx") or {}).get("error"))
    below = [key for key in places if key.startswith(f"{name}.")]
    parts = [key for key in below if re.search(rf"\b{re.escape(key.rpartition('.')[2])}\b", cause)]
    mains = [key for key in below if key == f"{name}.{(main or {}).get(name)}"]
    holders = sorted((key for key in places if name == key or name.startswith(f"{key}.")), key=len, reverse=True)
    return next((places[key] for key in (*parts, *mains, *holders)), None)


def _located(loc: tuple[int | str, ...], names: Collection[str]) -> tuple[str, list[str]]:
    """The dotted name at pydantic's ``loc``, and all names in its section."""
    name, pattern = "", ""
    known: list[str] = []
    for part in map(str, loc):
        if pattern and not any(other.startswith(f"{pattern}.") for other in names):
            break  # a leaf: what follows is a member of a union, or a place in a list
        dot = "." if pattern else ""
        fields = [other.removeprefix(f"{pattern}{dot}") for other in names if other.startswith(f"{pattern}{dot}")]
        known = [f"{name}{dot}{field}" for field in fields if "." not in field and field != MEMBER]
        member = any(field == MEMBER or field.startswith(f"{MEMBER}.") for field in fields)
        name, pattern = f"{name}{dot}{part}", f"{pattern}{dot}{MEMBER if member else part}"
    return name, known


def _hint(name: str, known: list[str], names: Collection[str]) -> str:
    """The setting of the same name in another section, its own section's parts first; else the nearest of ``known``."""
    section, _, word = name.rpartition(".")
    same = [other for other in names if other.rpartition(".")[2] == word and MEMBER not in other]
    same.sort(key=lambda other: not other.startswith(f"{section}."))
    return f"Did you mean {same[0]}?" if same else nearest(name, known)
