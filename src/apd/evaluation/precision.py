"""How precisely an accuracy is known: over images, over trainings, and how many images a wanted precision needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from apd.errors import InputError
from apd.evaluation.kept import read_record
from apd.evaluation.statistics import OverTrainings, images_for, over_trainings, paired_bootstrap, wilson
from apd.evaluation.stored import Outcomes, Stored, how_to_evaluate, is_kept, stored_in
from apd.runs.folder import Run
from apd.util.files import AnyPath, user_path

Circumstances = tuple[str, ...]
"""Data, split, classes, corruption, norm and eps of an evaluation."""


@dataclass(frozen=True)
class Known:
    """One accuracy, in percent, on the images that all runs were evaluated on.

    Args:
        attack: ``clean``, an attack's name, or ``worst`` of all attacks.
        about: data, split, classes, corruption, norm and eps.
        n: images.
        accuracy: mean over the runs.
        images: 95 % interval over images: what other images would change (Wilson's; for several runs, bootstrap).
        trainings: what other seeds would change; None for one run.
        needed: images for an interval of plus or minus so many points at this accuracy.
    """

    attack: str
    about: Circumstances
    n: int
    accuracy: float
    images: tuple[float, float]
    trainings: OverTrainings | None
    needed: dict[float, int]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


def precision(runs: AnyPath | Sequence[AnyPath], points: Sequence[float] = (5.0, 2.0, 1.0)) -> list[Known]:
    """Say how precisely the accuracies are known that evaluations of a run, or of runs with several seeds, have kept.

    Args:
        runs: evaluated run folders, or folders that `apd evaluate --classifier` has written; several are taken for trainings
            that differ in their seed.
        points: precisions, in percentage points, to say the number of images for.

    Raises:
        InputError: no run, one twice or copied, a folder without kept outcomes, runs without an evaluation in common.

    Example:
        >>> import apd
        >>> apd.precision(["runs/seed0", "runs/seed1", "runs/seed2"])[0].trainings  # doctest: +SKIP
    """
    runs = [runs] if isinstance(runs, str | PathLike) else runs
    if not runs or len({user_path(run).resolve() for run in runs}) < len(runs):
        raise InputError("Give one or more evaluated run folders, each once.")
    _check_different(runs)
    kept = [_evaluations(run) for run in runs]
    shared = [about for about in kept[0] if all(about in own for own in kept)]
    found = [row for about in shared for row in _rows(about, [own[about] for own in kept], points)]
    if not found:
        raise InputError(
            f"{', '.join(map(str, runs))} have no evaluation in common: evaluate them with the same --data, --split, --eps and "
            "--limit."
        )
    return found


def _weights(path: Path) -> str | None:
    """A hash of what was learned; None where the folder does not say it."""
    found = (
        (read_record(path) or {}).get("fingerprint") if is_kept(path) else Run.open(path).manifest.get("prompts_sha256")
    )
    return found if isinstance(found, str) else None


def _check_different(runs: Sequence[AnyPath]) -> None:
    """Refuse copies of one training: as several seeds they would make its accuracy look certain.

    Raises:
        InputError: two runs with the same prompts.
    """
    known: dict[str, AnyPath] = {}
    for run in runs:
        digest = _weights(user_path(run))
        if digest is not None and digest in known:
            raise InputError(
                f"{known[digest]} and {run} have the same prompts, so they are one training, not two; leave one out."
            )
        known[str(digest)] = run


def _evaluations(path: AnyPath) -> dict[Circumstances, list[Outcomes]]:
    """A run's evaluations under each of its circumstances, those with most images first."""
    found: dict[Circumstances, list[Outcomes]] = {}
    for stored in stored_in(path):
        if stored.outcomes is not None:
            found.setdefault(_about(stored), []).append(stored.outcomes)
    for own in found.values():
        own.sort(key=len, reverse=True)
    if not found:
        raise InputError(f"{path} keeps no outcomes image by image; evaluate it: {how_to_evaluate(path)}")
    return found


def _about(stored: Stored) -> Circumstances:
    summary = stored.summary
    return tuple(
        str(summary.get(name) or "") for name in ("data", "split", "classes", "corruption", "norm", "eps_text")
    )


def _rows(about: Circumstances, runs: Sequence[Sequence[Outcomes]], points: Sequence[float]) -> list[Known]:
    """One row per attack that all runs have, each by the largest evaluation with it.

    ``worst`` is there where each run has an evaluation with these attacks and no others.
    """
    names = dict.fromkeys(name for one in runs[0] for name in one.predictions)
    attacks = [name for name in names if all(any(name in one.predictions for one in own) for own in runs)]
    chosen = [(name, [[one for one in own if name in one.predictions] for own in runs]) for name in attacks]
    if len(attacks) > 2:
        chosen.append(("worst", [[one for one in own if set(one.predictions) == set(attacks)] for own in runs]))
    rows = (_row(name, about, [own[0] for own in of], points) for name, of in chosen if all(of))
    return [row for row in rows if row is not None]


def _row(attack: str, about: Circumstances, found: Sequence[Outcomes], points: Sequence[float]) -> Known | None:
    """The row of one attack, on the images that all evaluations have; None for none."""
    common = set(found[0].keys).intersection(*(one.keys for one in found[1:]))
    if not common:
        return None
    right = np.array([_right(one, attack, found[0], common) for one in found], dtype=float)
    runs, n = right.shape
    accuracy = 100 * float(right.mean())
    alike = right.all() or not right.any()  # images drawn again would say that nothing is uncertain
    if runs == 1 or alike:
        low, high = (100 * end for end in wilson(int(right[0].sum()), n))
    else:
        over_images = paired_bootstrap(right, np.zeros_like(right))
        low, high = max(0.0, over_images.low), min(100.0, over_images.high)
    spread = None if runs == 1 else over_trainings((100 * right.mean(axis=1)).tolist())
    if spread is not None and spread.low is not None and spread.high is not None:
        spread = replace(spread, low=max(0.0, spread.low), high=min(100.0, spread.high))
    needed = {each: images_for(each, min(100.0, max(0.0, accuracy))) for each in points}
    return Known(attack, about, n, round(accuracy, 2), (round(low, 2), round(high, 2)), spread, needed)


def _right(one: Outcomes, attack: str, first: Outcomes, common: set[Any]) -> list[bool]:
    """Outcomes of the common images in the order of the first evaluation."""
    right = dict(zip(one.keys, one.right(attack), strict=True))
    return [right[key] for key in first.keys if key in common]
