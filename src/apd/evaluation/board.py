"""`leaderboard`: all results below some folders, side by side only where they can be compared."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from apd.errors import InputError, nearest
from apd.evaluation.samples import hash_of_keys
from apd.evaluation.statistics import mcnemar, paired_bootstrap
from apd.evaluation.stored import Stored, outcomes_beside, read_stored
from apd.runs.output import SUMMARY
from apd.runs.reliability import reliability
from apd.util.files import AnyPath, names_of, plain_file, read_json, user_path
from apd.util.text import one_line
from apd.util.yaml_files import read_yaml

MOST = 10_000
"""Results that are read at most."""
MOST_BYTES = 200_000_000
"""Bytes of a file that is read."""


@dataclass(frozen=True)
class Paired:
    """An entry beside the best of its group, image by image: points it is behind, their 95 % interval, McNemar's p-value."""

    difference: float
    interval: tuple[float, float]
    p: float


@dataclass(frozen=True)
class Entry:
    """One classifier under one attack.

    Args:
        name: its run folder or evaluation folder, relative to the folder that was searched, or where two would be alike, the
            end of its path.
        about: what was evaluated, as far as its folder says.
        accuracy, interval: under the attack, in percent.
        clean, undefended: clean accuracy, and that of zero-shot CLIP under the attack; None where it was not attacked.
        reliable: whether the health checks allow to trust it; None where none ran.
        because: why not.
        missing: what the result lacks.
        paired: None for the best, and where outcomes per image are missing.
    """

    name: str
    about: str
    accuracy: float
    interval: tuple[float, float]
    clean: float
    undefended: float | None
    reliable: bool | None
    because: tuple[str, ...]
    missing: tuple[str, ...]
    paired: Paired | None = None


@dataclass(frozen=True)
class Group:
    """Entries that can be compared: the same images, threat model and attack.

    Args:
        data, split, corruption, image_size, norm, eps, attack: what they have in common; ``attack`` may be "worst of ...".
        n, n_available: images.
        images: a hash of the images, or what is known of them where outcomes are missing, and the number of classes they are
            told apart by.
        entries: the most accurate first.
        absent: names that have a result on this data set, but none in this group.
    """

    data: str
    split: str
    corruption: str | None
    image_size: int
    norm: str
    eps: str
    attack: str
    n: int
    n_available: int
    images: str
    entries: tuple[Entry, ...]
    absent: tuple[str, ...]


@dataclass(frozen=True)
class Board:
    """All groups, and the files that were left out with the reason."""

    groups: tuple[Group, ...]
    left_out: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


_Key = tuple[Any, ...]


def leaderboard(folders: AnyPath | Sequence[AnyPath], *, data: str | None = None, attack: str | None = None) -> Board:
    """Collect the results of all run folders and evaluation folders below some folders.

    Entries stand together only if data set, images, number of classes, corruption, image size, threat model and attack are
    equal. Where outcomes were kept image by image, each entry is compared with the best of its group on the very same images.

    Args:
        folders: searched with all folders below; links are not followed.
        data: only this data set.
        attack: only this attack.

    Raises:
        InputError: a folder that is not there, no result that can be read, or more than `MOST` results; a name that none of
            them has.

    Example:
        >>> import apd
        >>> for group in apd.leaderboard(["runs"]).groups:  # doctest: +SKIP
        ...     print(group.attack, [(entry.name, entry.accuracy) for entry in group.entries])
    """
    folders = [folders] if isinstance(folders, str | PathLike) else folders
    found: dict[_Key, dict[str, tuple[Entry, Stored]]] = {}
    left_out: list[str] = []
    names: dict[str, set[str]] = {}
    attacks: set[str] = set()
    for name, file in _named(folders):
        try:
            stored = _read(file)
            entries = list(_entries(name, stored))
        except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            left_out.append(f"{file}: {one_line(error, 200)}")
            continue
        names.setdefault(str(stored.summary["data"]), set()).add(name)
        attacks |= {str(key[-1]) for key, _ in entries}
        if data is not None and stored.summary["data"] != data:
            continue
        for key, entry in entries:
            known = found.get(key, {}).get(name)
            # Of one attack with several seeds the worst counts, as of several attacks.
            if (attack is None or key[-1] == attack) and (known is None or entry.accuracy < known[0].accuracy):
                found.setdefault(key, {})[name] = (entry, stored)
    if not found:
        places = ", ".join(map(str, folders))
        raise InputError(
            _nothing(places, left_out, {"data": (data, sorted(names)), "attack": (attack, sorted(attacks))})
        )
    groups = tuple(_group(key, found[key], names) for key in sorted(found, key=repr))
    return Board(groups, tuple(left_out))


def _nothing(places: str, left_out: Sequence[str], wanted: Mapping[str, tuple[str | None, Sequence[str]]]) -> str:
    """Say why there is nothing to rank, and the way out."""
    for what, (name, known) in wanted.items():
        if known and name is not None and name not in known:
            return f"No result below {places} has the {what} {name!r}. {nearest(name, known)}"
    if left_out:
        return f"No result below {places} can be read: {left_out[0]}"
    together = " and ".join(f"{what} {name!r}" for what, (name, known) in wanted.items() if known and name is not None)
    if together:
        return f"No result below {places} has {together}; leave one of the two out."
    return f"There is no result below {places}; apd evaluate RUN makes one, and keeps it in RUN/results."


def _named(folders: Sequence[AnyPath]) -> Iterator[tuple[str, Path]]:
    """Find the summaries, each with the name of the folder that holds its ``results``; no two folders share one."""
    found = list(_summaries(folders))
    runs = {file.parent.parent.resolve(): name for name, file in found}
    if len(set(runs.values())) < len(runs):  # a/runs and b/runs, searched together
        runs = dict(zip(runs, names_of(list(runs)), strict=True))
    for _, file in found:
        yield runs[file.parent.parent.resolve()], file


def _summaries(folders: Sequence[AnyPath]) -> Iterator[tuple[str, Path]]:
    """Find the summaries, each with the name of its folder as seen from the one that was searched."""
    count, seen = 0, set()
    for folder in map(user_path, folders):
        if not folder.is_dir():
            raise InputError(f"There is no folder {str(folder)!r}; give folders that hold run folders or evaluations.")
        for place, below, files in os.walk(folder):
            below.sort()
            for name in sorted(files):
                file = Path(place) / name
                if Path(place).name != "results" or not (name.startswith(SUMMARY) and name.endswith(".json")):
                    continue
                if file.resolve() in seen:
                    continue
                seen.add(file.resolve())
                count += 1
                if count > MOST:
                    raise InputError(f"{folder} holds more than {MOST} results; give folders further down.")
                yield _name(folder, file.parent.parent), file


def _name(folder: Path, run: Path) -> str:
    if folder not in (run, *run.parents):  # the folder of the results itself was given
        return run.resolve().name
    relative = run.relative_to(folder).as_posix()
    return folder.resolve().name if relative == "." else f"{folder.name}/{relative}" if folder.name else relative


def _read(file: Path) -> Stored:
    """Read a result and its outcomes, having looked at the size of both."""
    for each in (file, outcomes_beside(file)):
        if each == file or os.path.lexists(each):
            plain_file(each, MOST_BYTES)
    return read_stored(file)


def _entries(name: str, stored: Stored) -> Iterator[tuple[_Key, Entry]]:
    """Make an entry of each attack of a result, and of the worst of several, with what can be compared."""
    result, outcomes = stored.summary, stored.outcomes
    known = outcomes is not None
    images = (
        hash_of_keys(outcomes.keys)[:12]
        if outcomes is not None
        else f"unknown, seed {result['seed']}, {result['classes']}"
    )
    if n_classes := result.get("n_classes"):  # which older results do not name
        images += f", {n_classes} classes"
    about = (result["data"], result["split"], result["corruption"], result["image_size"], int(result["n"]))
    threat = (int(result["n_available"]), images, result["norm"], result["eps_text"])
    trusted, base = reliability(result), result["undefended"]
    missing = tuple(
        what
        for what, lacks in {
            "outcomes per image": not known,
            "health checks": trusted.reliable is None,
            "zero-shot control": base is None,
            f"{len(result['skipped_images'])} unreadable images": bool(result["skipped_images"]),
        }.items()
        if lacks
    )
    scores = dict(result["attacks"])
    worst = f"worst of {', '.join(sorted(scores))}"
    if len(scores) > 1:
        scores[worst] = result["worst"]
    for attack, score in scores.items():
        other = None if base is None else (base["worst"] if attack == worst else base["attacks"][attack])["accuracy"]
        low, high = map(float, score["interval"])
        if not all(0 <= value <= 100 for value in (low, high, score["accuracy"], result["clean"], other or 0)):
            raise ValueError("an accuracy is not between 0 and 100 %")
        entry = Entry(
            name=name,
            about=_about(stored.file.parent.parent),
            accuracy=float(score["accuracy"]),
            interval=(low, high),
            clean=float(result["clean"]),
            undefended=None if other is None else float(other),
            reliable=trusted.reliable,
            because=trusted.because,
            missing=missing,
        )
        yield (*map(str, about[:3]), *about[3:], *threat, attack), entry


def _about(folder: Path) -> str:
    """Say what a folder holds: a run's method and CLIP model, or the name of a classifier."""
    try:
        if (folder / "run.json").is_file():
            model = _field(read_json(folder / "run.json", "evaluate again"), "model", "source")
            config = folder / "config.yaml"
            method = _field(read_yaml(config), "method", "name") if config.is_file() else ""
            return one_line(f"{method} on {model}" if method else model, 120)
        if (folder / "classifier.json").is_file():
            return one_line(_field(read_json(folder / "classifier.json", "evaluate again"), "classifier"), 120)
    except (InputError, OSError, ValueError, RecursionError):
        pass  # the result stands by itself
    return ""


def _field(record: Any, *names: str) -> str:
    for name in names:
        record = record.get(name, "") if isinstance(record, Mapping) else ""
    return str(record)


def _group(key: _Key, found: Mapping[str, tuple[Entry, Stored]], names: Mapping[str, set[str]]) -> Group:
    """Sort the entries of a group, and compare each with the best."""
    data, split, corruption, image_size, n, n_available, images, norm, eps, attack = key
    ordered = sorted(found.values(), key=lambda pair: (-pair[0].accuracy, -pair[0].clean, pair[0].name))
    best = ordered[0][1]
    entries = [ordered[0][0]] + [replace(entry, paired=_paired(stored, best, attack)) for entry, stored in ordered[1:]]
    return Group(
        data=data,
        split=split,
        corruption=None if corruption == "None" else corruption,
        image_size=image_size,
        norm=norm,
        eps=eps,
        attack=attack,
        n=n,
        n_available=n_available,
        images=images,
        entries=tuple(entries),
        absent=tuple(sorted(names[data] - set(found))),
    )


def _paired(stored: Stored, best: Stored, attack: str) -> Paired | None:
    """Compare an entry with the best, image by image."""
    a, b = stored.outcomes, best.outcomes
    if a is None or b is None:
        return None
    name = "worst" if attack.startswith("worst of ") else attack
    places = {key: i for i, key in enumerate(b.keys)}
    order = [places[key] for key in a.keys]
    x, y = np.array(a.right(name)), np.array(b.right(name))[order]
    found = paired_bootstrap(x, y)
    return Paired(round(found.mean, 2), (round(found.low, 2), round(found.high, 2)), mcnemar(x, y))
