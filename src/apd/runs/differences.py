"""Where two records of a run differ, and whether a run may be resumed with other settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apd.errors import InputError

if TYPE_CHECKING:
    from apd.runs.config import RunConfig

_FREE = ("train.device", "data.memory_gb", "train.tracker")
"""Settings, by how their names begin, that may change when a run is resumed: the prompts are the same."""


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


def check_same(
    path: Path, configs: tuple[RunConfig, RunConfig], manifests: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> None:
    """Check that the run at ``path`` is resumed with what it was started with.

    Args:
        path: named in errors.
        configs: settings before and now.
        manifests: content of ``run.json`` before and now.

    Raises:
        InputError: another setting, model, teacher, data set or class name.
    """
    before, now = (flat(config.model_dump(mode="json")) for config in configs)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not key.startswith(_FREE):
            raise InputError(
                f"{path} was started with {key}={before.get(key)}, now {now.get(key)}; --resume continues with the same "
                "settings. Drop the change, or start again with --overwrite."
            )
    old, new = manifests
    for key in ("model", "teachers", "data", "class_names", "templates"):
        if key not in old:  # a run of before it was kept
            continue
        differing = first_difference(old[key], json.loads(json.dumps(new.get(key))), key)
        if differing:
            raise InputError(f"{path} was started with another {differing}; start again with --overwrite.")
