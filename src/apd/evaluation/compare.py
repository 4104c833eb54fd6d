"""Runs beside each other: paired differences on the images that both were evaluated on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from os import PathLike
from typing import Any

import numpy as np

from apd.errors import InputError
from apd.evaluation.statistics import mcnemar, paired_bootstrap
from apd.evaluation.stored import Stored, how_to_evaluate, stored_in
from apd.runs.reliability import reliability
from apd.runs.setting_differences import Difference, differences
from apd.util.files import AnyPath, refuse_twice, user_path


@dataclass(frozen=True)
class Row:
    """Two runs under one attack, on the images that both were evaluated on.

    Args:
        attack: ``clean``, an attack's name, or ``worst`` of all attacks.
        data: the data set's name.
        corruption: what was done to the images before any attack.
        norm, eps: the threat model, eps as text; None for ``clean``.
        n: images in common.
        a, b: accuracies on these in percent.
        difference: ``b - a`` in percentage points.
        interval: its paired 95 % bootstrap interval.
        only_a, only_b: images that only one of the two gets right.
        p: exact p-value of McNemar's test.
        reliable_a, reliable_b: whether the evaluations behind them can be trusted; None where nothing was checked.
        split, classes: which images of the data set, and which of its classes, as they were evaluated.
    """

    attack: str
    data: str
    corruption: str | None
    norm: str | None
    eps: str | None
    n: int
    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    only_a: int
    only_b: int
    p: float
    reliable_a: bool | None = None
    reliable_b: bool | None = None
    split: str = "test"
    classes: str = "all"

    @property
    def images(self) -> str:
        """The data set's name, with the split and the classes unless they are the usual ones."""
        usual = {"split": "test", "classes": "all"}
        found = [f"{getattr(self, name)} {name}" for name, value in usual.items() if getattr(self, name) != value]
        return f"{self.data} ({', '.join(found)})" if found else self.data


@dataclass(frozen=True)
class Comparison:
    """Two runs, by their folders, and the rows of their table.

    ``unreliable`` names each evaluation behind them that cannot be trusted, and why; ``settings`` each setting in which their
    trainings differ, with both values.
    """

    a: str
    b: str
    rows: tuple[Row, ...]
    unreliable: tuple[str, ...] = ()
    settings: tuple[Difference, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        from apd.evaluation.shown import comparison_html

        return comparison_html(self)


def compare_runs(runs: Sequence[AnyPath]) -> list[Comparison]:
    """Compare each run with the first, from what their folders keep: no model is loaded and no attack is run.

    Images are the same if id, pixels and label are. They are compared among as many classes only, and attacks
    at the same eps and norm only.

    Args:
        runs: two or more run folders that were evaluated, or folders that `apd evaluate --classifier` has written.

    Returns:
        One comparison per run after the first.

    Raises:
        InputError: fewer than two runs, the same twice, a folder without kept outcomes, runs without images in common.

    Example:
        >>> import apd
        >>> apd.compare_runs(["runs/control", "runs/apd"])[0].rows[0].difference  # doctest: +SKIP
    """
    if isinstance(runs, str | PathLike) or len(runs) < 2:
        raise InputError("A comparison needs at least two run folders.")
    runs = [str(user_path(run)) for run in runs]
    refuse_twice(runs)
    kept = [_kept(run) for run in runs]
    return [
        Comparison(
            str(runs[0]),
            str(other),
            _rows(runs[0], kept[0], other, found),
            _unreliable(a=kept[0], b=found),
            differences(runs[0], other),
        )
        for other, found in zip(runs[1:], kept[1:], strict=True)
    ]


def _unreliable(**sides: Sequence[Stored]) -> tuple[str, ...]:
    """Name the evaluations that cannot be trusted, with their side and why."""
    lines: dict[str, None] = {}
    for side, found in sides.items():
        for summary in (stored.summary for stored in found):
            judged = reliability(summary)
            if judged.reliable is False:
                where = f"{summary['data']}, {summary['norm']} {summary['eps_text']}, {', '.join(summary['attacks'])}"
                lines[f"{side.upper()} ({where}) reliable: {judged.describe()}"] = None
    return tuple(lines)


def _kept(path: AnyPath) -> list[Stored]:
    found = [stored for stored in stored_in(path) if stored.outcomes is not None]
    if not found:
        raise InputError(
            f"{path} keeps no outcomes image by image to compare; evaluate it: {how_to_evaluate(path)} "
            "(images that were attacked before are not attacked again)."
        )
    return found


def _rows(a: AnyPath, left: Sequence[Stored], b: AnyPath, right: Sequence[Stored]) -> tuple[Row, ...]:
    """Rows of all attacks that two runs share, each on the evaluations with most images in common.

    ``worst`` is there where one evaluation has all attacks of its table: beside others, that of some may be the higher figure.
    """
    best: dict[tuple[str, ...], Row] = {}
    most: dict[tuple[str, ...], int] = {}
    for one, other in product(left, right):
        for row in _shared(one, other):
            key = (row.images, row.corruption or "", row.norm or "", row.eps or "", row.attack)
            # Of worst cases the one of most attacks, then as of all others the one of most images.
            attacks = len(one.summary["attacks"]) if row.attack == "worst" else 0
            if key not in best or (attacks, row.n) > (most[key], best[key].n):
                best[key], most[key] = row, attacks
    beside = Counter(key[:-1] for key in best if key[-1] != "worst")
    best = {key: row for key, row in best.items() if key[-1] != "worst" or most[key] == beside[key[:-1]]}
    if not best:
        raise InputError(
            f"{a} and {b} have no images of as many classes in common: {a} was evaluated on {_data(left)}, {b} on "
            f"{_data(right)}. Evaluate one on the other's data (apd evaluate RUN --data DATA), with the same --split and "
            "--classes."
        )
    return tuple(best[key] for key in sorted(best, key=lambda key: (*key[:2], key[4] != "clean", *key[2:])))


def _data(found: Sequence[Stored]) -> str:
    about = (stored.summary for stored in found)
    return ", ".join(
        dict.fromkeys(f"{s['data']} {s['split']} (classes {s['classes']}, {s['n']} images)" for s in about)
    )


def _shared(one: Stored, other: Stored) -> Iterator[Row]:
    """Compare two evaluations, attack by attack; nothing if they have no images in common."""
    a, b = one.outcomes, other.outcomes
    assert a is not None and b is not None
    first, second = one.summary, other.summary
    # The same image is easier to get right among fewer classes.
    if first.get("corruption") != second.get("corruption") or len(a.class_names) != len(b.class_names):
        return
    places = {key: i for i, key in enumerate(b.keys)}
    pairs = [(i, places[key]) for i, key in enumerate(a.keys) if key in places]
    if not pairs:
        return
    same_threat = (first["norm"], first["eps"]) == (second["norm"], second["eps"])
    attacks = [name for name in first["attacks"] if name in second["attacks"]] if same_threat else []
    if len(attacks) > 1 and set(first["attacks"]) == set(second["attacks"]):
        attacks.append("worst")
    i, j = (np.array(index) for index in zip(*pairs, strict=True))
    for attack in ["clean", *attacks]:
        x, y = np.array(a.right(attack))[i], np.array(b.right(attack))[j]
        attacked = attack != "clean"
        found = paired_bootstrap(y, x)
        yield Row(
            attack=attack,
            data=str(first["data"]),
            corruption=first.get("corruption"),
            norm=first["norm"] if attacked else None,
            eps=first["eps_text"] if attacked else None,
            n=len(pairs),
            a=round(100 * float(x.mean()), 2),
            b=round(100 * float(y.mean()), 2),
            difference=round(found.mean, 2),
            interval=(round(found.low, 2), round(found.high, 2)),
            only_a=int((x & ~y).sum()),
            only_b=int((y & ~x).sum()),
            p=mcnemar(x, y),
            reliable_a=reliability(first).reliable,
            reliable_b=reliability(second).reliable,
            split=str(first["split"]),
            classes=str(first["classes"]),
        )
