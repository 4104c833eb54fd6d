"""What a bench leaves for a program: one tidy table of all figures, from the plan and the outcomes alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from apd.attacks.threat import format_eps, parse_eps
from apd.bench.job import Outcome, ViewOutcome, read_outcome
from apd.bench.plan import Entry, Plan
from apd.bench.protocols import View
from apd.errors import InputError
from apd.util.extras import install_command
from apd.util.files import write_atomic
from apd.util.text import quoted

COLUMNS = (
    "data",
    "method",
    "shots",
    "seed",
    "protocol",
    "split",
    "attack",
    "eps",
    "accuracy",
    "n",
    "seconds",
    "run",
)
"""Columns of results.csv; ``seconds`` are of training and of this evaluation, with all its attacks, together."""


def plan_file(folder: Path) -> Path:
    """Where the lines of all tables are kept."""
    return folder / "plan.json"


def read_bench(folder: Path) -> tuple[Plan, dict[str, Outcome]]:
    """What a bench has planned and what is known of it.

    Raises:
        InputError: no bench there, or a damaged file.
    """
    file = plan_file(folder)
    try:
        plan = Plan.from_json(file.read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no bench (no plan.json); apd bench SUITE --output {quoted(folder)} makes one."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}); run the bench again, finished runs are kept.") from error
    found = {entry.job: read_outcome(folder, entry.job) for entry in plan.entries}
    return plan, {job: outcome for job, outcome in found.items() if outcome is not None}


def entry_views(entry: Entry, outcomes: Mapping[str, Outcome]) -> dict[str, ViewOutcome]:
    """What is known of a line, by the name of the view; the second stage's included."""
    outcome = outcomes.get(entry.job)
    known = outcome.views if outcome else {}
    pairs = [*entry.views.items(), *entry.final.items()]
    return {view.name: known[key] for key, view in pairs if key in known}


def rows(plan: Plan, outcomes: Mapping[str, Outcome]) -> Iterator[dict[str, Any]]:
    """One row a run, split, attack and eps; clean accuracy, which all budgets of a curve share, once."""
    for entry in plan.entries:
        clean = set[str]()
        views: dict[str, View] = {view.name: view for view in (*entry.views.values(), *entry.final.values())}
        for name, found in entry_views(entry, outcomes).items():
            view = views[name]
            for attack in found.right:
                if attack == "clean" and view.split in clean:
                    continue
                clean.add(view.split)
                yield {
                    "data": entry.data,
                    "method": entry.method,
                    "shots": entry.shots,
                    "seed": entry.seed or 0,
                    "protocol": entry.protocol,
                    "split": view.split,
                    "attack": attack,
                    "eps": "0" if attack == "clean" else format_eps(parse_eps(view.eps)),
                    "accuracy": round(found.accuracy(attack), 4),
                    "n": len(found.right[attack]),
                    "seconds": round(outcomes[entry.job].seconds + found.seconds, 2),
                    "run": entry.job,
                }


def write_rows(folder: Path, plan: Plan, outcomes: Mapping[str, Outcome], say: Callable[[str], None]) -> list[Path]:
    """``results.csv``, and ``results.parquet`` where pyarrow is installed; what was written of them."""
    table = list(rows(plan, outcomes))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    written = [folder / "results.csv"]
    write_atomic(written[0], text.getvalue())
    if find_spec("pyarrow") is None:
        say(f"No results.parquet: it needs pyarrow ({install_command('parquet')}).")
        return written
    import pyarrow
    import pyarrow.parquet

    # Shots may be "all": text, so that the column has one type.
    columns = {name: [str(row[name]) if name == "shots" else row[name] for row in table] for name in COLUMNS}
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    written.append(folder / "results.parquet")
    write_atomic(written[1], sink.getvalue().to_pybytes())
    return written
