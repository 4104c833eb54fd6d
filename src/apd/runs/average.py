"""Average the prompts of several runs, such as different seeds, into a new run; all must have started from the same words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from apd.errors import InputError
from apd.runs.draw import draws_of
from apd.runs.folder import Run
from apd.runs.load import SAME_MODEL
from apd.util.files import AnyPath, refuse_twice, user_path
from apd.util.messages import get_logger, speaking

log = get_logger("apd.runs")

_SAME = ("class_names", "templates", "prompts")
_NOT_OF_THE_MEAN = ("prompts_sha256", "seconds", "facts", "calibration")


def average_runs(paths: Sequence[AnyPath], output: str | Path, *, overwrite: bool = False) -> Run:
    """Average the prompts of finished runs, tensor by tensor (model soups, Wortsman 2022, arXiv 2203.05482).

    Settings and circumstances are those of the first; ``run.json`` lists under ``averaged`` which runs they were. If they differ
    in method, eps or norm, a warning and the summary name these. Nothing is validated: `apd.evaluate_run` says what the mean is
    worth. Prompts that started at random from different seeds may be worth less in the mean than each alone.

    Args:
        paths: run folders, two at least, of the same CLIP model, classes, templates and kind of prompts.
        output: new run folder.
        overwrite: replace a run in ``output``.

    Returns:
        The new run.

    Raises:
        InputError: fewer than two runs, runs that do not go together, an output that cannot be used.

    Example:
        >>> import apd
        >>> apd.average_runs(["runs/seed0", "runs/seed1"], "runs/mean")  # doctest: +SKIP
    """
    if isinstance(paths, str | Path):
        raise InputError(f"paths must be a list of run folders, got {str(paths)!r}.")
    if len(paths) < 2:
        raise InputError(f"An average needs two runs or more, got {len(paths)}.")
    if user_path(output).resolve() in refuse_twice(paths):
        raise InputError(f"{output} is one of the runs that are averaged; choose another --output.")
    runs = [Run.open(path) for path in paths]
    first, tensors = runs[0], [run.load_prompts() for run in runs]
    if not tensors[0]:
        raise InputError(f"{first.path} has no prompts to average: its method learns nothing.")
    for run in runs[1:]:
        _check_same(first, run)
    mean = {name: torch.stack([each[name].double() for each in tensors]).mean(dim=0) for name in tensors[0]}
    kept = {key: value for key, value in first.manifest.items() if key not in _NOT_OF_THE_MEAN}
    averaged = [_about(run) for run in runs]
    new = Run.create(output, first.config, {**kept, "status": "running", "averaged": averaged}, overwrite=overwrite)
    new.save_prompts({name: value.to(tensors[0][name].dtype) for name, value in mean.items()})
    others = _others(runs)
    if others:
        with speaking():
            log.warning(f"The averaged runs differ in {others}; the mean is kept under the settings of {first.path}.")
    new.finish({"averaged_runs": len(runs), **({"averaged_over": others} if others else {})})
    return new


def _about(run: Run) -> dict[str, Any]:
    """What the mean keeps of a run: where it was, its prompts, and what it has learned from."""
    draws = [draw.model_dump(mode="json") for draw in draws_of(run)]
    return {"run": str(run.path.resolve()), "prompts_sha256": run.manifest["prompts_sha256"], "draws": draws}


def _others(runs: Sequence[Run]) -> str:
    """Name the method, eps and norm of runs that do not have them in common, with all values; empty where they do."""
    trains = [run.config.train for run in runs]
    found: dict[str, list[Any]] = {
        "method.name": [run.config.method.name for run in runs],
        "train.eps": [train.threat.eps for train in trains],
        "train.norm": [train.norm for train in trains],
    }
    shown = {**found, "train.eps": [train.eps for train in trains]}
    differing = [name for name, values in found.items() if len(set(values)) > 1]
    return ", ".join(f"{name} ({', '.join(dict.fromkeys(map(str, shown[name])))})" for name in differing)


def _check_same(first: Run, other: Run) -> None:
    """Refuse a run whose prompts mean something else.

    Raises:
        InputError: naming what differs.
    """

    def about(run: Run) -> dict[str, Any]:
        model = {f"model.{key}": run.manifest["model"].get(key) for key in SAME_MODEL}
        return {**{key: run.manifest[key] for key in _SAME}, **model}

    one, two = about(first), about(other)
    # An older run states less of its model.
    differing = [key for key, value in one.items() if two[key] != value and None not in (two[key], value)]
    if differing:
        raise InputError(
            f"{other.path} has another {differing[0]} than {first.path}; only like prompts can be averaged."
        )
