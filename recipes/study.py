"""Train and attack several methods over several seeds on one data set, and compare them pair by pair.

A study can be stopped and started again, on another machine too: every row that is finished is in the outcomes' file,
image by image, and is not computed again; what an unfinished row has is in its folder.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import apd
from apd.files import write_atomic
from apd.statistics import Difference, paired_bootstrap


@dataclass(frozen=True)
class Row:
    """One line of the table: a label, and a method with its settings, or None for zero-shot CLIP."""

    label: str
    method: Mapping[str, Any] | None
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Study:
    """What is trained on, and how it is attacked; ``eps`` in [0,1] pixel units."""

    name: str
    model: str
    data: str
    eps: str
    rows: tuple[Row, ...]
    attacks: tuple[str, ...]
    limit: int | None
    shots: int = 16
    train: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, row: Row) -> dict[str, Any]:
        """All that decides a row's outcome but the seed; places on this machine are left out."""
        about = asdict(self) | {"method": row.method and dict(row.method)}
        return {name: value for name, value in about.items() if name not in ("rows", "model", "data")}


@dataclass(frozen=True)
class Outcome:
    """What one trained classifier did: ``right`` holds a 1 or 0 for each image, under ``clean``, each attack, ``worst``."""

    label: str
    seed: int
    settings: str
    seconds: float
    validation: dict[str, float]
    right: dict[str, str]

    def mask(self, name: str) -> list[bool]:
        """Which images are classified right; the images of one study are the same in every row."""
        return [mark == "1" for mark in self.right[name]]

    def accuracy(self, name: str) -> float:
        """In percent."""
        return 100 * statistics.mean(self.mask(name))


Outcomes = dict[str, dict[int, Outcome]]
"""Label, then seed."""


def run_study(study: Study, folder: Path, file: Path, say: Callable[[str], None] = print) -> Outcomes:
    """All rows of a study; the few-shot draw follows the seed, the images under attack are the same for all.

    Args:
        study: what to do.
        folder: where runs are trained; their prompts stay there.
        file: JSON with an `Outcome` for each finished row and seed; other studies have other files.
        say: told of each row.
    """
    known = _read(file)
    outcomes: Outcomes = {}
    for row in study.rows:
        outcomes[row.label] = {}
        digest = hashlib.sha256(json.dumps(study.settings(row), sort_keys=True).encode()).hexdigest()[:16]
        for seed in row.seeds:
            outcome = known.get((row.label, seed))
            if outcome is None or outcome.settings != digest:
                outcome = _run_row(study, row, seed, digest, folder)
                known[row.label, seed] = outcome
                _write(file, known)
            outcomes[row.label][seed] = outcome
            figures = ", ".join(f"{name} {outcome.accuracy(name):.1f}" for name in outcome.right)
            say(f"{study.name} {row.label} seed {seed}: {figures} ({outcome.seconds:.0f} s)")
    return outcomes


def _run_row(study: Study, row: Row, seed: int, digest: str, folder: Path) -> Outcome:
    started = time.monotonic()
    clip, data = apd.load_clip(study.model), apd.load_data(study.data, shots=study.shots, seed=seed)
    place = folder / study.name / f"{row.label.replace(' ', '-')}-{seed}"
    validation = {}
    if row.method is None:
        classifier = apd.PromptedCLIP(clip, None, data.class_names, data.templates)
    else:
        training = {"eps": study.eps, "seed": seed, **study.train}
        run = apd.train(clip, data, method=row.method, output=place / "run", resume=True, **training)
        classifier = apd.load_run(run.path)
        summary = run.manifest["summary"]
        validation = {name: summary[name] for name in ("val_clean", "val_robust")}
    result = apd.evaluate(
        classifier,
        data,
        store=place / "results",
        attacks=study.attacks,
        eps=study.eps,
        limit=study.limit,
        seed=0,
        control=False,
        checks=False,
    )
    names = dict.fromkeys(("clean", *study.attacks, "worst"))
    right = {name: "".join(str(int(mark)) for mark in result.robust_mask(name).tolist()) for name in names}
    return Outcome(row.label, seed, digest, round(time.monotonic() - started, 1), validation, right)


def _read(file: Path) -> dict[tuple[str, int], Outcome]:
    entries = [Outcome(**entry) for entry in json.loads(file.read_text())] if file.exists() else []
    return {(entry.label, entry.seed): entry for entry in entries}


def _write(file: Path, known: Mapping[tuple[str, int], Outcome]) -> None:
    write_atomic(file, json.dumps([asdict(outcome) for outcome in known.values()], indent=1) + "\n")


def compare(a: Mapping[int, Outcome], b: Mapping[int, Outcome], name: str) -> Difference:
    """``a - b`` in points over the seeds they share, paired over images and seeds; ``clean``, an attack, or ``worst``."""
    shared = sorted(a.keys() & b.keys())
    return paired_bootstrap([a[seed].mask(name) for seed in shared], [b[seed].mask(name) for seed in shared])


def table(outcomes: Outcomes, against: str) -> str:
    """A Markdown table: mean ± standard deviation over seeds, and differences with intervals to the row ``against``."""
    columns = list(next(iter(outcomes[against].values())).right)
    lines = [f"| method | seeds | {' | '.join(columns)} | clean against {against} | worst against {against} |"]
    lines.append("|" + "---|" * (len(columns) + 4))
    for label, row in outcomes.items():
        cells = [_mean([outcome.accuracy(column) for outcome in row.values()]) for column in columns]
        differences = ["", ""]
        if label != against and row.keys() & outcomes[against].keys():
            differences = [_difference(compare(row, outcomes[against], name)) for name in ("clean", "worst")]
        lines.append(f"| {label} | {len(row)} | {' | '.join(cells)} | {' | '.join(differences)} |")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def _difference(d: Difference) -> str:
    return f"{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}] {d.verdict}"
