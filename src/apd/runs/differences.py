"""Where two records of a run differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(record: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    if not isinstance(record, Mapping):
        return {prefix: record}
    return {
        name: value for key in record for name, value in flat(record[key], f"{prefix}.{key}" if prefix else key).items()
    }


def first_difference(before: Any, now: Any, name: str) -> str | None:
    """The first dotted key whose value differs, with both values; None where nothing does."""
    old, new = flat(before, name), flat(now, name)
    return next(
        (
            f"{key} ({old.get(key)}, now {new.get(key)})"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and not key.endswith(".revision")  # the hash tells whether weights differ
        ),
        None,
    )
