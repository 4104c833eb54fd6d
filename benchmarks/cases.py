"""Rows of figures: what is to be measured, what is known already, and the files in between."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import apd
from apd.models import DualEncoder
from apd.util.files import write_atomic
from benchmarks.geometry import GEOMETRIES, Geometry, save
from benchmarks.measure import Side, machine
from benchmarks.towers import Towers

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What the command line says, and the models made on the way.

    Args:
        quick: few sizes and rounds.
        device: where to compute.
        geometry: of the main rows.
        results: folder of the JSON files.
        testbed: folder of a real small CLIP with images; None: the embedded CLIP and digits.
        again: measure what is known already too.
        only: patterns of row names.
    """

    quick: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    geometry: str = "vit-b-32"
    results: Path = Path("benchmarks/results")
    testbed: Path | None = None
    again: bool = False
    only: tuple[str, ...] = ("*",)

    @cached_property
    def _models(self) -> tuple[tempfile.TemporaryDirectory[str], dict[str, tuple[DualEncoder, Towers]]]:
        return tempfile.TemporaryDirectory(prefix="apd-benchmarks-"), {}

    def folder(self, geometry: Geometry) -> Path:
        """A model folder of this geometry, made once a run."""
        path = Path(self._models[0].name) / f"{geometry.name}-{geometry.image_size}"
        return path if path.exists() else save(geometry, path)

    def load(self, name: str) -> tuple[DualEncoder, Towers]:
        """Our encoder and the bare towers of a geometry, with equal weights, loaded once a run."""
        loaded = self._models[1]
        if name not in loaded:
            folder = self.folder(GEOMETRIES[name])
            encoder = apd.load_clip(folder, device=self.device)
            loaded[name] = (encoder, Towers.load(folder, encoder))
        return loaded[name]

    def suffix(self, geometry: str) -> str:
        """What a row's name says of its geometry: nothing for ViT-B/32."""
        return "" if geometry == "vit-b-32" else f"-{geometry}"


@dataclass(frozen=True)
class Case:
    """A row to come.

    Args:
        name: of the row.
        settings: all that its figures depend on, but for the number of rounds.
        measure: does it.
        sides: what takes turns in it, as far as its work can be predicted.
        seconds: of all else: processes that start, work that is not matrix products.
        derived: computed from other rows, so always done again.
    """

    name: str
    settings: Mapping[str, Any]
    measure: Callable[[], Row]
    sides: Mapping[str, Side] = field(default_factory=dict)
    seconds: float = 0.0
    derived: bool = False

    def predicted(self, device: torch.device) -> float:
        """Seconds that the row should take."""
        return self.seconds + sum(side.seconds(device) for side in self.sides.values())


class Results:
    """The rows of one suite on one machine, in a JSON file that is written after each of them.

    A row of another machine makes way: a file never mixes two.
    """

    def __init__(self, file: Path, options: Options) -> None:
        self.file, self.options, self.machine = file, options, machine(options.device)
        found = json.loads(file.read_text()) if file.is_file() else []
        self.rows: list[Row] = [row for row in found if row["machine"] == self.machine]
        if len(self.rows) < len(found):
            print(f"{file}: {len(found) - len(self.rows)} rows of another machine make way", flush=True)

    def row(self, name: str) -> Row | None:
        """The row of that name, if it is there."""
        return next((row for row in self.rows if row["name"] == name), None)

    def knows(self, case: Case) -> bool:
        """Whether the row need not be measured: same settings and machine, and as many rounds as asked for."""
        row = self.row(case.name)
        return (
            row is not None
            and not (case.derived or self.options.again)
            and row["digest"] == _digest(case)
            and (self.options.quick or row["effort"] == "full")
        )

    def add(self, case: Case, row: Row, load: float) -> Row:
        """Complete a measured row, and write the file."""
        complete = {**dict.fromkeys(CONTRACT), "name": case.name, "extrapolated": False, **row, "machine": self.machine}
        about = {
            "settings": dict(case.settings),
            "digest": _digest(case),
            "effort": "quick" if self.options.quick else "full",
            "load_before": round(load, 2),
        }
        self.rows = [other for other in self.rows if other["name"] != case.name] + [complete | about]
        write_atomic(self.file, json.dumps(self.rows, indent=1) + "\n")
        return complete


CONTRACT = ("name", "ours_s", "reference_s", "floor_s", "ratio_reference", "ratio_floor", "spread", "extrapolated")
"""What every row has, besides ``machine``; None where there is no such figure."""

COUNTS = ("ours_gflop", "reference_gflop", "floor_gflop", "times_fewer")
"""What rows of counted operations have besides."""


def _digest(case: Case) -> str:
    text = json.dumps([apd.__version__, case.name, case.settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run(cases: Iterable[Case], results: Results, say: Callable[[str], None] = print, plan: bool = False) -> None:
    """Measure what is not known yet: the predicted cost of each row and of all, then each row as it is done.

    Args:
        cases: the rows, most important first.
        results: what is known, and where to write.
        say: to the person who waits.
        plan: stop behind the prediction.
    """
    device = results.options.device
    patterns = results.options.only
    todo = [c for c in cases if any(fnmatch(c.name, p) for p in patterns) and not results.knows(c)]
    costs = [case.predicted(device) for case in todo]
    say(f"{results.file.stem}: {len(todo)} rows to measure, about {_time(sum(costs))}")
    for case, cost in zip(todo, costs, strict=True):
        say(f"  {case.name}: about {_time(cost)}")
    for case in () if plan else todo:
        load, started = os.getloadavg()[0], time.perf_counter()
        row = results.add(case, case.measure(), load)
        say(f"{case.name}: {_figures(row)} ({_time(time.perf_counter() - started)})")


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _figures(row: Row) -> str:
    known = [key for key in (*CONTRACT[1:6], *COUNTS) if row.get(key) is not None]
    parts = [f"{key} {row[key]:.3g}" for key in known]
    return ", ".join(parts + (["extrapolated"] if row["extrapolated"] else []))
