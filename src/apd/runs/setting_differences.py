"""What two trainings differ in: a difference between their results may come from any of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apd.runs.differences import flat
from apd.runs.folder import Run
from apd.util.files import AnyPath, user_path

SEEDS = ("train.seed", "data.seed")
_HOUSEKEEPING = (
    "train.device",
    "train.tensorboard",
    "train.trackers",
    "train.tracker_options",
    "train.log_every",
    "train.checkpoint_every",
    "data.memory_gb",
    "data.skip_bad_images",
)
Difference = tuple[str, str, str]


def differences(a: AnyPath, b: AnyPath) -> tuple[Difference, ...]:
    """Each setting in which the trainings of two run folders differ, and the number of optimiser steps.

    Where the methods differ, their own settings are left out.

    Returns:
        Name and both values, as text; empty where a folder does not hold a training of ours.
    """
    known = [_known(user_path(path)) for path in (a, b)]
    if None in known:
        return ()
    one, other = (found or {} for found in known)
    names = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    # What epochs or steps came to is compared; where both set steps, epochs are what a warm-up is a share of.
    hidden = {"train.steps"} if one["train.steps"] and other["train.steps"] else {"train.steps", "train.epochs"}
    names = [name for name in names if name not in hidden]
    if "method.name" in names:
        names = [name for name in names if name == "method.name" or not name.startswith("method.")]
    return tuple((name, _text(one.get(name)), _text(other.get(name))) for name in names)


def _known(path: Path) -> dict[str, Any] | None:
    if not (path / "run.json").is_file():
        return None
    run = Run.open(path)
    found = {"steps": run.manifest.get("summary", {}).get("steps"), **flat(run.config.model_dump(mode="json"))}
    found["train.steps"] = run.config.train.steps
    # As decided, where the settings leave something open.
    if "prompts" in run.manifest:
        found |= flat({"method": {"prompts": run.manifest["prompts"]}})
    found["data.templates"] = run.manifest["templates"]
    if "shots" in run.manifest["seeds"]:
        found["data.seed"] = run.manifest["seeds"]["shots"]
    return {name: value for name, value in found.items() if name not in _HOUSEKEEPING}


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
