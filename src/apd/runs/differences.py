"""Where two records of a run differ, and whether a run may be resumed with other settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apd.errors import InputError
from apd.util.text import quoted

if TYPE_CHECKING:
    from apd.runs.config import RunConfig

_FREE = ("train.device", "data.memory_gb", "train.tracker")
"""Settings, by how their names begin, that may change when a run is resumed: the prompts are the same."""
_CONTEXTS = "method.prompts.class_specific"
_PLACES = ("model", "data.source", "data.unlabelled", "data.class_names")
"""Settings that may name another place when a run is resumed: hashes tell whether the same is there."""
_NAMES = (".source", ".run", ".revision", "data.name", "data.unlabelled_source")
"""What the manifest keeps of places, by how its keys end."""
_SINCE = (".architecture", "data.labels_sha256")
"""What the manifest of an older run does not keep, by how its keys end."""
_IDS = "data.ids_sha256"
_LABELS = "data.labels_sha256"


def hash_of_ids(train: Sequence[str], val: Sequence[str], unlabelled: Sequence[str] | None = None) -> str:
    """Hash which images a run was trained and validated on, in their order; unlabelled ones where it has any."""
    more = () if unlabelled is None else ("", *unlabelled)
    return hashlib.sha256("\n".join([*train, "", *val, *more]).encode(errors="surrogateescape")).hexdigest()


def hash_of_labels(*labels: Sequence[int]) -> str:
    """Hash the labels of the training and of the validation images, in their order."""
    return hashlib.sha256(json.dumps([list(each) for each in labels]).encode()).hexdigest()


def flat(record: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    if not isinstance(record, Mapping):
        return {prefix: record}
    return {
        name: value for key in record for name, value in flat(record[key], f"{prefix}.{key}" if prefix else key).items()
    }


def first_difference(before: Any, now: Any, name: str) -> str | None:
    """The first dotted key whose value differs, with both values; None where nothing but names of places does."""
    old, new = flat(before, name), flat(now, name)
    return next(
        (
            f"{key} ({old.get(key)}, now {new.get(key)})"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
            and not key.endswith(_NAMES)
            and not (key.endswith(_SINCE) and key not in old)
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
    before, now = (_flat_settings(config) for config in configs)
    free = _places(configs[1])
    for key in sorted(before.keys() | now.keys()):
        # What nobody chose is decided anew, and compared below as it was decided.
        is_open = key == _CONTEXTS and None in (before.get(key), now.get(key))
        if before.get(key) != now.get(key) and not key.startswith(_FREE) and key not in free and not is_open:
            raise InputError(
                f"{path} was started with {key}={before.get(key)}, now {now.get(key)}; --resume continues with the same "
                "settings. Drop the change, or start again with --overwrite (Python: overwrite=True)."
            )
    old, new = manifests
    for key in ("model", "teachers", "data", "class_names", "templates", "prompts"):
        if key not in old:  # a run from before it was kept
            continue
        differing = first_difference(old[key], json.loads(json.dumps(new.get(key))), key)
        if differing:
            raise InputError(_other(path, differing, configs[1].data.source))


def moved(before: RunConfig, now: RunConfig) -> bool:
    """Whether settings that `check_same` has let pass name other places than before."""
    places = _places(now)
    old, new = _flat_settings(before), _flat_settings(now)
    return any(old.get(key) != new.get(key) for key in places)


def _places(config: RunConfig) -> tuple[str, ...]:
    """Settings that only say where something is."""
    return (*_PLACES, *(f"method.{name}" for name in config.method.other_models()))


def _flat_settings(config: RunConfig) -> dict[str, Any]:
    return flat(config.model_dump(mode="json"))


def _other(path: Path, differing: str, source: str) -> str:
    """Say what is not that of the run, and what may be done."""
    if not differing.startswith("data."):
        return f"{path} was started with another {differing}; start again with --overwrite (Python: overwrite=True)."
    from apd.data.dataset import IN_MEMORY  # which imports torch, as nothing else here does

    kind = "labels" if differing.startswith(_LABELS) else "images"
    what = "" if differing.startswith((_IDS, _LABELS)) else f": {differing}"
    named = (
        ""
        if source.startswith(IN_MEMORY)
        else f"name the data that has them (apd train DATA --output {quoted(path)} --resume), "
    )
    return (
        f"{path} was started with other {kind} than {source} gives now{what}. Put them back, {named}or start again with "
        "--overwrite (Python: overwrite=True)."
    )
