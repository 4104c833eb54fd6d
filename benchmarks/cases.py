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
from apd.clip import DualEncoder
from apd.files import write_atomic
from benchmarks.geometry import GEOMETRIES, Geometry, save
from benchmarks.measure import machine, matmul_rate
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
        only: pattern of row names.
    """

    quick: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    geometry: str = "vit-b-32"
    results: Path = Path("benchmarks/results")
    testbed: Path | None = None
    again: bool = False
    only: str = "*"

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
        gflop: its work over all rounds, as far as it can be predicted.
        measure: does it.
        derived: computed from other rows, so always done again.
    """

    name: str
    settings: Mapping[str, Any]
    gflop: float
    measure: Callable[[], Row]
    derived: bool = False


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


def _digest(case: Case) -> str:
    text = json.dumps([apd.__version__, case.name, case.settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run(cases: Iterable[Case], results: Results, say: Callable[[str], None] = print) -> None:
    """Measure what is not known yet, cheapest news first: the predicted cost, then each row as it is done."""
    options = results.options
    todo = [case for case in cases if fnmatch(case.name, options.only) and not results.knows(case)]
    total = sum(case.gflop for case in todo)
    # Towers reach about half of what one large product does.
    rate = matmul_rate(options.device) / 2 if total else 1.0
    say(f"{results.file.stem}: {len(todo)} rows to measure, {total:,.0f} GFLOP, about {_time(total / rate)}")
    for case in todo:
        if case.gflop:
            say(f"{case.name}: about {_time(case.gflop / rate)}")
        load, started = os.getloadavg()[0], time.perf_counter()
        row = results.add(case, case.measure(), load)
        say(f"{case.name}: {_figures(row)} ({_time(time.perf_counter() - started)})")


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _figures(row: Row) -> str:
    parts = [f"{key} {row[key]:.3g}" for key in CONTRACT[1:6] if row[key] is not None]
    return ", ".join(parts + (["extrapolated"] if row["extrapolated"] else []))
