"""What stands in a run's ``run.json``, whether a run can be written to a place, and names of its files."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from apd.errors import InputError
from apd.runs.manifest import TRAIN_AGAIN, check_manifest
from apd.util.files import check_writable, read_json, user_path, writing
from apd.util.progress import counted
from apd.util.text import quoted

SUMMARY = "summary-"
"""Begins the names of files that keep what an evaluation found."""
# run.json goes last and comes first: as long as it is there, a half-removed or half-made folder is known as a run.
_OWN = (
    "config.yaml",
    "prompts.safetensors",
    "metrics.jsonl",
    "checkpoint",
    "results",
    "images",
    "tensorboard",
    "README.md",
    "run.json",
)
_LONGEST_NAME = 180
Apart = Literal["images", "attacks"]
FORMAT = 1
"""Version of the run folder; a folder of another version is refused."""


def _way_to_a_run(folder: Path) -> str:
    """Say where a run is instead, or what the folder holds."""
    below = sorted(file.parent for pattern in ("*/run.json", "runs/*/run/run.json") for file in folder.glob(pattern))
    if below:
        return f"{counted(len(below), 'run')} below it: name one, such as {quoted(below[0])}"
    if (folder / "classifier.json").is_file():
        kept = (folder / "results").is_dir()
        return (
            f"it keeps an evaluation: apd leaderboard {quoted(folder)}"
            if kept
            else "it is an export: name the run it is of"
        )
    return "apd train … --output makes one"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a run.

    Raises:
        InputError: no run folder, a damaged one, one of another version.
    """
    file = folder / "run.json"
    if folder.is_file():
        raise InputError(f"{str(folder)!r} is a file; give the folder of a run.")
    if not folder.is_dir():
        raise InputError(f"No run folder {str(folder)!r}; apd train … --output {quoted(folder)} makes one.")
    if not file.is_file():
        raise InputError(f"{str(folder)!r} is not a run folder (it has no run.json); {_way_to_a_run(folder)}.")
    manifest = read_json(file, TRAIN_AGAIN)
    try:
        version, _ = manifest["format"], manifest["status"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}); {TRAIN_AGAIN}.") from error
    if version != FORMAT:
        raise InputError(
            f"{str(folder)!r} is a run folder of version {version}, this apd reads version {FORMAT}; "
            f"use the apd it was made with (versions.apd in its run.json) or {TRAIN_AGAIN}."
        )
    check_manifest(manifest, file, TRAIN_AGAIN)
    found: dict[str, Any] = manifest
    return found


def check_output(path: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Whether a run can be written there; changes nothing, so that it can be asked before any work.

    Raises:
        InputError: a run is there and neither ``resume`` nor ``overwrite`` is asked for; other files are there; the
            place is a file, read-only or full.
    """
    folder = user_path(path)
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other; give one.")
    check_writable(folder)
    if (folder / "run.json").is_file():
        if resume:
            read_manifest(folder)
        elif not overwrite:
            raise InputError(taken(folder))
    elif folder.is_dir():
        # Names of ours too: a README.md or a results folder without a run is a person's own.
        foreign = sorted(item.name for item in folder.iterdir() if not item.name.startswith("."))
        if foreign == ["config.yaml"] and _is_ours(folder / "config.yaml"):
            if not (resume or overwrite):
                raise InputError(_unfinished(folder))
        elif foreign:
            raise InputError(
                f"{folder} holds other files ({foreign[0]}) and no run; choose a new or empty folder as --output."
            )


def check_kept(folder: Path) -> None:
    """Whether what is measured of a run can be kept in its folder.

    Raises:
        InputError: it is read-only or full; with what to do instead.
    """
    try:
        check_writable(folder)
    except InputError as error:
        copied = f"cp -r {quoted(folder)} COPY"
        raise InputError(f"{error} What is measured is kept in the run's folder; use a copy of it: {copied}") from error


def taken(folder: Path) -> str:
    """What to do about a run that is there already."""
    if read_manifest(folder)["status"] == "done":
        return f"{folder} holds a finished run; {_OTHERS}"
    return _unfinished(folder)


_OTHERS = "replace it with --overwrite, or choose another --output (Python: overwrite=True, output=)."


def _unfinished(folder: Path) -> str:
    how = f"apd train --output {quoted(folder)} --resume (Python: resume=True)"
    return f"{folder} holds an unfinished run; resume with: {how}; or {_OTHERS}"


def _is_ours(file: Path) -> bool:
    """Whether a file of settings is to the byte what a run writes first of all: nothing is lost when it is replaced."""
    from apd.runs.config import load_config

    try:
        return file.is_file() and load_config(file).to_yaml() == file.read_text(encoding="utf-8")
    except (InputError, OSError, UnicodeDecodeError):
        return False


def clear(folder: Path) -> None:
    """Make the folder of a new run, and remove from it what a run before has written."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in _OWN:
            place = folder / name
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)


def summary_files(results: Path) -> list[Path]:
    """List what evaluations found, in a folder of results, in the order of the files' names."""
    return sorted(results.glob(f"{SUMMARY}*.json"))


def summary_name(result: Mapping[str, Any], apart: Apart | None = None) -> str:
    """Name the file of what an evaluation found, after what it depends on.

    Args:
        result: as JSON has it.
        apart: also tell the ``images`` by their hash, as two folders of images may have one name; or the ``attacks``, whose names
            may differ in what is not allowed in a file's. The file then comes after the one of the plain name.
    """
    about = [result[key] for key in ("data", "split", "classes", "norm")]
    about += [result["eps_text"] if result["norm"] == "linf" else _in_levels(result["eps"])]
    about += [result["corruption"]] if result.get("corruption") else []
    name = "-".join([*about, f"seed{result['seed']}", f"n{result['n']}", *result["attacks"]])
    if apart == "images":
        return f"{SUMMARY}{file_name(name)}_{result['images_sha256'][:8]}.json"
    more = f"_{text_hash(repr((*result['attacks'], result['images_sha256'])))}" if apart == "attacks" else ""
    return f"{SUMMARY}{file_name(name)}{more}.json"


def file_name(text: str) -> str:
    """A text as part of a file's name: safe on any file system, and a hash in place of what would be too long."""
    short = re.sub(r"[^A-Za-z0-9.-]+", "_", text)
    return short if len(short) <= _LONGEST_NAME else f"{short[:_LONGEST_NAME]}-{text_hash(text)}"


def text_hash(text: str) -> str:
    """A few digits that tell texts apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _in_levels(eps: float) -> str:
    """A budget in 255ths where it is one: files have been named so in all norms, and keep their names."""
    from apd.attacks.threat import format_eps

    return format_eps(eps)
