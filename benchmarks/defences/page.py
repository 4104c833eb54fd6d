"""The tables of docs/reliability.md, from what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.defences.planted import PLANTED
from benchmarks.defences.table import STOPS

PAGE = Path("docs/reliability.md")
INFLATED = 10
"""Points of accuracy under attack beyond those of the hidden model that count as looking robust."""
TITLES = {
    "small": "A small CNN on the built-in digits",
    "testbed-cifar10": "A small CLIP model on CIFAR-10",
    "honest-cifar10": "Honest runs of that CLIP model on CIFAR-10",
    "testbed-eurosat": "Honest runs of that CLIP model on EuroSAT",
    "glyphs-digits": "Honest runs of the built-in CLIP model on the built-in digits",
}
HIDDEN = ("plain CNN, seed 0", "zero-shot CLIP")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def write_page(results: Path) -> None:
    """Put the tables of all ``defences-NAME.json`` files between the marks of the page."""
    parts = [text for file in sorted(results.glob("defences-*.json")) for text in _section(file)]
    head, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n\n" + "\n".join(parts) + f"\n{END}{tail}")


def _section(file: Path) -> Iterator[str]:
    found = json.loads(file.read_text())
    rows = found["rows"]
    planted, honest = ([row for row in rows if (row["kind"] == "honest") is wanted] for wanted in (False, True))
    planted = sorted(planted, key=lambda row: list(PLANTED).index(row["name"]))
    hidden = next((row["attacked"] for row in honest if row["name"] in HIDDEN), None)
    inflated = [row for row in planted if hidden is None or (row["attacked"] or 0) > hidden + INFLATED]
    name = file.stem.removeprefix("defences-")
    yield f"### {TITLES.get(name, name)}\n"
    where = f"{found['images']} images, {found['attack']}, eps {255 * found['eps']:g}/255"
    library = f"AutoAttack on {found['library_images']} of them" if found["library_images"] else "without AutoAttack"
    yield f"{where}; {library}. Source: `{file.as_posix()}`.\n"
    yield (
        f"| caught by | planted defences | those that look more than {INFLATED} points more robust than the model they hide | "
        "honest models, falsely |\n|---|---|---|---|"
    )
    for name, caught in (
        ("health checks", _checks),
        ("AutoAttack's flags", _library),
        ("indicators of attack failure", _fired),
    ):
        yield f"| {name} | {_count(planted, caught)} | {_count(inflated, caught)} | {_count(honest, caught)} |"
    yield "\n| model | kind | clean % | under attack % | health checks | AutoAttack's flags | indicators of attack failure |"
    yield "|---|---|---|---|---|---|---|"
    yield from map(_line, planted + honest)
    yield ""


def _checks(row: dict[str, Any]) -> Sequence[str] | None:
    return [*row["caught"], *(["refused"] if row["refused"] else [])]


def _library(row: dict[str, Any]) -> Sequence[str] | None:
    return row["library"]


def _fired(row: dict[str, Any]) -> Sequence[str] | None:
    return None if row["refused"] else row["indicators"]


def _count(rows: Sequence[dict[str, Any]], caught: Any) -> str:
    known = [found for row in rows if (found := caught(row)) is not None]
    if not known:
        return "-"
    flagged = [found for found in known if set(found) - {STOPS}]
    stopped = sum(list(found) == [STOPS] for found in known)
    return f"{len(flagged)} of {len(known)}" + (f", and {stopped} stop it with an error" if stopped else "")


def _line(row: dict[str, Any]) -> str:
    accuracies = ["-" if row[key] is None else f"{row[key]:.1f}" for key in ("clean", "attacked")]
    verdicts = [
        "-" if (found := caught(row)) is None else ", ".join(found) or "none" for caught in (_checks, _library, _fired)
    ]
    return "| " + " | ".join([row["name"], row["kind"], *accuracies, *verdicts]) + " |"
