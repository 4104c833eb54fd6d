"""Machine-readable results: one tidy table of all accuracies, from the plan and the outcomes alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from apd.bench.job import EvalOutcome, Outcome, read_outcome
from apd.bench.plan import WAY_OUT, Plan, TableRow
from apd.errors import InputError
from apd.util.extras import install_command
from apd.util.files import LARGEST_JSON, read_bounded, write_atomic
from apd.util.messages import get_logger
from apd.util.text import cell, quoted

log = get_logger("apd.bench")

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
    "reliable",
)
"""Columns of results.csv.

``seconds`` add up training and this evaluation with all its attacks; ``reliable`` is yes, no, or empty if not known. Where blocks
name numbers of unlabelled images, ``unlabelled`` follows.
"""


def plan_file(folder: Path) -> Path:
    """The file that keeps the rows of all tables."""
    return folder / "plan.json"


def read_bench(folder: Path) -> tuple[Plan, dict[str, Outcome]]:
    """Read what a bench has planned and the outcomes so far.

    Raises:
        InputError: no bench there, or a damaged file.
    """
    file = plan_file(folder)
    if not file.exists():
        raise InputError(
            f"{folder} holds no bench (no plan.json); apd bench SUITE --output {quoted(folder)} makes one."
        )
    try:
        plan = Plan.from_json(read_bounded(file, WAY_OUT, LARGEST_JSON), file)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}); {WAY_OUT}.") from error
    found = {row.job: read_outcome(folder, row.job) for row in plan.rows}
    return plan, {job: outcome for job, outcome in found.items() if outcome is not None}


def row_evals(row: TableRow, outcomes: Mapping[str, Outcome]) -> dict[str, EvalOutcome]:
    """Find the outcomes of a row by the name of the evaluation, those of the second stage included."""
    outcome = outcomes.get(row.job)
    known = outcome.evals if outcome else {}
    pairs = [*row.evals.items(), *row.final.items()]
    return {spec.name: known[key] for key, spec in pairs if key in known}


def rows(plan: Plan, outcomes: Mapping[str, Outcome]) -> Iterator[dict[str, Any]]:
    """Yield one row per run, split, attack and eps; clean accuracy, which all budgets of a curve share, comes once."""
    for row in plan.rows:
        clean = set[str]()
        specs = {spec.name: spec for spec in (*row.evals.values(), *row.final.values())}
        for name, found in row_evals(row, outcomes).items():
            spec = specs[name]
            for attack in found.right:
                if attack == "clean" and spec.split in clean:
                    continue
                clean.add(spec.split)
                yield {
                    "data": row.data,
                    "method": row.method,
                    "shots": row.shots,
                    "seed": row.seed or 0,
                    "protocol": row.protocol,
                    "split": spec.split,
                    "attack": attack,
                    "eps": "0" if attack == "clean" else spec.budget,
                    "accuracy": round(found.accuracy(attack), 4),
                    "n": len(found.right[attack]),
                    "seconds": round(outcomes[row.job].seconds + found.seconds, 2),
                    "run": row.job,
                    "reliable": {True: "yes", False: "no", None: ""}[found.reliable],
                    "unlabelled": row.unlabelled,
                }


def write_rows(folder: Path, plan: Plan, outcomes: Mapping[str, Outcome]) -> list[Path]:
    """Write ``results.csv``, and ``results.parquet`` if pyarrow is installed; return what was written."""
    table = list(rows(plan, outcomes))
    text = io.StringIO()
    names = COLUMNS if all(row.unlabelled is None for row in plan.rows) else (*COLUMNS, "unlabelled")
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in table)
    written = [folder / "results.csv"]
    write_atomic(written[0], text.getvalue())
    if find_spec("pyarrow") is None:
        log.info(f"No results.parquet: it needs pyarrow ({install_command('parquet')}).")
        return written
    import pyarrow
    import pyarrow.parquet

    # Shots may be "all": text, so that the column has one type.
    columns = {name: [str(row[name]) if name == "shots" else row[name] for row in table] for name in names}
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    written.append(folder / "results.parquet")
    write_atomic(written[1], sink.getvalue().to_pybytes())
    return written
