"""Settings in layers, such as a file, flags and ``--set``: nested mappings, merged with the later over the earlier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from apd.errors import InputError
from apd.util.text import short


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one; the later wins.

    >>> merged({"optimizer": {"lr": 1, "clip": 2}}, {"optimizer": {"lr": 3}})
    {'optimizer': {'lr': 3, 'clip': 2}}
    """
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            nested = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(result[key], value) if nested else value
    return result


def with_path(
    raw: Mapping[str, Any], name: str, value: Any, *, source: str = "", main: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A copy in which the dotted ``name`` is ``value``.

    Args:
        raw: nested mappings; not changed.
        name: sections are made as needed.
        value: the new value.
        source: where the value came from, for the message.
        main: section to its main setting, which a bare word in place of the section stands for.

    Raises:
        InputError: a part of the name is a value, not a section.

    >>> with_path({"data": "digits"}, "data.shots", 4, main={"data": "source"})
    {'data': {'source': 'digits', 'shots': 4}}
    """
    head, dot, rest = name.partition(".")
    if not dot:
        return {**raw, head: value}
    section = raw.get(head) or {}
    if main and head in main and isinstance(section, str):
        section = {main[head]: section}
    if not isinstance(section, Mapping):
        raise InputError(f"{source}: {head} is not a section but {short(section)}, so {name} cannot be set.")
    return {**raw, head: with_path(section, rest, value, source=source)}


def without_path(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy without the dotted ``name``.

    >>> without_path({"train": {"epochs": 1, "seed": 2}}, "train.epochs")
    {'train': {'seed': 2}}
    """
    head, _, rest = name.partition(".")
    if rest and isinstance(raw.get(head), Mapping):
        return {**raw, head: without_path(raw[head], rest)}
    return {key: value for key, value in raw.items() if rest or key != head}


def leaves(raw: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all values that are not sections.

    >>> list(leaves({"train": {"epochs": 1, "optimizer": {"lr": 2}}}))
    ['train.epochs', 'train.optimizer.lr']
    """
    for key, value in raw.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
