"""A bench suite of a few seconds, done in this process, and its results as tests read them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apd.bench import Machine
from apd.bench.job import attempt

Write = Callable[..., Path]


def tiny(clip: Path, colours: Path, **changes: Any) -> dict[str, Any]:
    """A suite of a few seconds."""
    return {
        "name": "tiny",
        "model": str(clip),
        "limit": 6,
        "attacks": ["pgd-2"],
        "train": {"epochs": 1, "batch_size": 4, "attack": {"steps": 1}, "checkpoint_every": 1, "validate_every": 9},
        "data": {"colours": {"source": str(colours), "eps": "8/255", "shots": 2}},
        "methods": {"zero-shot": None, "advvlp": "advvlp", "vlp": "vlp"},
        "blocks": [
            {"protocol": "few-shot", "data": "colours", "methods": ["zero-shot", "advvlp", "vlp"], "seeds": [0, 1]}
        ],
        **changes,
    }


class InProcess(Machine):
    """Does the jobs in this process, and counts them."""

    def run(self, jobs: Any, folder: Path) -> Any:
        for job in jobs:
            self.__dict__.setdefault("done", []).append(job.label)
            yield attempt(job, folder, self.threads)


def here() -> InProcess:
    return InProcess("local", 1, 1, 0)


def rights(folder: Path) -> dict[str, Any]:
    """Every outcome image by image, without times."""
    found = {}
    for file in (folder / "outcomes").glob("*.json"):
        views = json.loads(file.read_text())["views"]
        found[file.stem] = {key: view["right"] for key, view in views.items()}
    return found


def table_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "results.csv", newline="") as stream:
        return list(csv.DictReader(stream))
