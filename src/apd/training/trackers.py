"""Trackers of experiments, such as W&B and MLflow, by accelerate's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from apd.errors import InputError, nearest
from apd.runs.folder import Run
from apd.util.text import one_line, to_json

PROJECT = "apd"
"""Project, or experiment, that a tracker files a run under unless its options name another."""
TENSORBOARD = "tensorboard"
_PACKAGES = {"comet_ml": "comet-ml"}
"""What pip calls a package that is imported by another name."""


def check_trackers(names: Sequence[str], options: Mapping[str, Any]) -> None:
    """Check that the trackers are there, before any work.

    Args:
        names: those of accelerate, or of classes given to ``accelerate.tracking.register_tracker_class``.
        options: a tracker's name to what its constructor takes.

    Raises:
        InputError: an unknown tracker, options for one that is not used, a package that is not installed.
    """
    known = _classes() if names or options else {}
    for name in names:
        if name not in known:
            raise InputError(f"train.trackers: no tracker {name!r}. {nearest(name, known)}")
        if known[name].__module__.startswith("accelerate."):
            _check_package(name)
    for name in options:
        if name not in names:
            raise InputError(
                f"train.tracker_options has options for {name!r}, which train.trackers does not name; name it there."
            )


def start_trackers(names: Sequence[str], options: Mapping[str, Any], run: Run) -> list[Any]:
    """Start trackers that `check_trackers` has let pass, and hand them the run's settings.

    TensorBoard's events go into the run folder and have no settings beside them: the run folder has.

    Raises:
        InputError: a tracker that cannot be started, as when nobody is logged in.
    """
    return [_started(name, dict(options.get(name, {})), run) for name in names]


def _started(name: str, options: dict[str, Any], run: Run) -> Any:
    own = {"wandb": {"name": run.path.name}, "mlflow": {"run_name": run.path.name}}
    kind, project = _classes()[name], options.pop("project", PROJECT)
    try:
        if name == TENSORBOARD:
            tracker = kind(TENSORBOARD, run.path, **options)
        else:
            folder = (run.path / name,) if kind.requires_logging_directory else ()
            tracker = kind(project, *folder, **{**own.get(name, {}), **options})
        tracker.start()
        if name != TENSORBOARD:
            tracker.store_init_configuration(_scalars(run.config.model_dump(mode="json")))
    except Exception as error:  # whatever a tracker raises
        reason = one_line(error)
        raise InputError(f"train.trackers: cannot start {name} ({type(error).__name__}: {reason}).") from error
    return tracker


def _classes() -> dict[str, Any]:
    # Not at the top: accelerate takes a second.
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return {str(name): kind for name, kind in LOGGER_TYPE_TO_CLASS.items()}


def _check_package(name: str) -> None:
    try:
        import_module(name)
    except ImportError as error:
        package = _PACKAGES.get(name, name)
        raise InputError(
            f"train.trackers={name} needs the package {package}, which cannot be imported here ({error}): "
            f"pip install {package}"
        ) from error


def _scalars(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name, as values that every tracker takes.

    >>> _scalars({"train": {"epochs": 1, "scale": [0.6, 1]}})
    {'train.epochs': 1, 'train.scale': '[0.6, 1]'}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _scalars(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else to_json(value, None)
    return found
