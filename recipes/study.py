"""Train and attack several methods over several seeds on one data set, and compare them pair by pair.

A study can be stopped and started again: finished runs are kept, and evaluations compute only what is new.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apd
from apd.evaluation import Result
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


Outcome = dict[int, Result]
"""One result a seed."""


def run_study(study: Study, folder: Path, say: Callable[[str], None] = print) -> dict[str, Outcome]:
    """All rows of a study; the few-shot draw follows the seed, the images under attack are the same for all."""
    clip = apd.load_clip(study.model)
    outcomes: dict[str, Outcome] = {}
    for row in study.rows:
        outcomes[row.label] = {}
        for seed in row.seeds:
            started = time.monotonic()
            data = apd.load_data(study.data, shots=study.shots, seed=seed)
            place = folder / study.name / f"{row.label.replace(' ', '-')}-{seed}"
            if row.method is None:
                classifier = apd.PromptedCLIP(clip, None, data.class_names, data.templates)
            else:
                training = {"eps": study.eps, "seed": seed, **study.train}
                run = apd.train(clip, data, method=row.method, output=place / "run", resume=True, **training)
                classifier = apd.load_run(run.path)
            result = attack(study, classifier, data, place)
            outcomes[row.label][seed] = result
            seconds = time.monotonic() - started
            say(
                f"{study.name} {row.label} seed {seed}: clean {result.clean}, worst {result.worst.accuracy} ({seconds:.0f} s)"
            )
    return outcomes


def attack(study: Study, classifier: apd.PromptedCLIP, data: Any, place: Path, **changes: Any) -> Result:
    """Evaluate a classifier as the study says; ``changes`` replace settings (other attacks, fewer images)."""
    settings = {
        "attacks": study.attacks,
        "eps": study.eps,
        "limit": study.limit,
        "seed": 0,
        "control": False,
        "checks": False,
    }
    return apd.evaluate(classifier, data, store=place / "results", **{**settings, **changes})


def compare(a: Outcome, b: Outcome, attack_name: str) -> Difference:
    """``a - b`` in points over the seeds they share, paired over images and seeds; ``clean``, an attack, or ``worst``."""
    shared = sorted(a.keys() & b.keys())
    return paired_bootstrap([right(a[s], attack_name) for s in shared], [right(b[s], attack_name) for s in shared])


def right(result: Result, attack_name: str) -> list[bool]:
    """Which samples are classified right under an attack; the samples of one study are the same in every run."""
    return list(result.robust_mask(attack_name).tolist())


def table(outcomes: Mapping[str, Outcome], columns: Sequence[str], against: str) -> str:
    """A Markdown table: mean ± standard deviation over seeds, and differences with intervals to the row ``against``."""
    lines = [f"| method | seeds | {' | '.join(columns)} | clean against {against} | worst against {against} |"]
    lines.append("|" + "---|" * (len(columns) + 4))
    for label, outcome in outcomes.items():
        cells = [_mean([_accuracy(result, column) for result in outcome.values()]) for column in columns]
        differences = ["", ""]
        if label != against and outcome.keys() & outcomes[against].keys():
            differences = [_difference(compare(outcome, outcomes[against], name)) for name in ("clean", "worst")]
        lines.append(f"| {label} | {len(outcome)} | {' | '.join(cells)} | {' | '.join(differences)} |")
    return "\n".join(lines)


def save(outcomes: Mapping[str, Outcome], columns: Sequence[str], path: Path) -> None:
    """The accuracies behind a table, as JSON."""
    rows = [
        {
            "method": label,
            "seed": seed,
            "n": result.n,
            "eps": result.eps_text,
            **{c: _accuracy(result, c) for c in columns},
        }
        for label, outcome in outcomes.items()
        for seed, result in outcome.items()
    ]
    write_atomic(path, json.dumps(rows, indent=1) + "\n")


def _accuracy(result: Result, column: str) -> float:
    if column == "clean":
        return result.clean
    return result.worst.accuracy if column == "worst" else result.attacks[column].accuracy


def _mean(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def _difference(d: Difference) -> str:
    return f"{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}] {d.verdict}"
