"""The plots: clean against attacked accuracy, and curves over shots or eps."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from apd.attacks.threat import parse_eps
from apd.bench.plan import Plan
from apd.bench.protocols import PROTOCOLS
from apd.bench.report.compare import MeanStd
from apd.bench.report.tables import Table
from apd.util.extras import install_command
from apd.util.files import write_atomic
from apd.util.messages import get_logger

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = get_logger("apd.bench")

Points = Mapping[str, list[tuple[float, float]]]
"""The points of each method, by its label."""


def write_plots(folder: Path, plan: Plan, tables: Sequence[Table]) -> list[Path]:
    """Write PNG files to ``plots/``; without matplotlib (the extra ``report``) only say so."""
    if find_spec("matplotlib") is None:
        log.info(f"No plots: they need matplotlib ({install_command('report')}).")
        return []
    written = []
    for table in tables:
        if PROTOCOLS[table.protocol].curve == "eps":
            points = _over_eps(table)
            written.append(
                _save(folder, f"{table.protocol} {table.title}", points, ("eps x 255", "worst %"), line=True)
            )
        elif _attacked(table):
            same = [other for other in tables if (other.protocol, other.title) == (table.protocol, table.title)]
            title = table.title if len(same) == 1 else f"{table.title}, {table.note}"
            points = _scatter(table)
            written.append(_save(folder, f"{table.protocol} {title}", points, ("clean %", "worst %"), line=False))
    for name, points in _over_shots(plan, tables).items():
        written.append(_save(folder, f"few-shot {name} over shots", points, ("shots", "worst %"), line=True))
    return written


def _attacked(table: Table) -> bool:
    return table.main.name != "clean" and "clean" in {metric.name for metric in table.metrics}


def _clean(table: Table) -> dict[str, MeanStd]:
    return table.column(next(metric for metric in table.metrics if metric.name == "clean"))


def _scatter(table: Table) -> Points:
    clean, worst = _clean(table), table.column(table.main)
    return {label: [(clean[label].mean, worst[label].mean)] for label in clean}


def _over_eps(table: Table) -> Points:
    budgets = [metric for metric in table.metrics if metric.name.startswith("eps ")]
    columns = [(255 * parse_eps(m.name.removeprefix("eps ")), table.column(m)) for m in budgets]
    return {label: [(x, column[label].mean) for x, column in columns if label in column] for label in table.rows}


def _over_shots(plan: Plan, tables: Sequence[Table]) -> dict[str, Points]:
    """Worst accuracy at each number of shots, for the data sets that have several."""
    titles = {f"{e.data}, {e.shots} shots": e for e in plan.rows if PROTOCOLS[e.protocol].curve == "shots"}
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for table in tables:
        row = titles.get(table.title)
        if row is None or row.protocol != table.protocol or row.shots == "all" or not _attacked(table):
            continue
        # Other attacks or images make another curve.
        curve = f"{row.data}, {table.note}"
        for label, mean_std in table.column(table.main).items():
            found.setdefault(curve, {}).setdefault(label, []).append((float(row.shots), mean_std.mean))
    several = {name: points for name, points in found.items() if any(len(p) > 1 for p in points.values())}
    return {name: {label: sorted(p) for label, p in points.items()} for name, points in several.items()}


def _save(folder: Path, title: str, points: Points, labels: tuple[str, str], *, line: bool) -> Path:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(6, 4.5), layout="constrained")
    axes: Axes = canvas.add_subplot()
    for label, values in points.items():
        xs, ys = zip(*values, strict=True) if values else ((), ())
        axes.plot(xs, ys, marker="o", linestyle="-" if line else "", label=label)
    axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    image = io.BytesIO()
    canvas.savefig(image, format="png", dpi=150)
    file = folder / "plots" / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', title)}.png"
    write_atomic(file, image.getvalue())
    return file
