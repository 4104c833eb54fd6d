"""Curves over shots or over unlabelled images: one picture per metric, with a panel per data set and one for their mean."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from apd.bench.plan import TableRow
from apd.bench.protocols import PROTOCOLS, Metric
from apd.bench.report.plots import (
    MARKERS,
    Point,
    attacked,
    axis_of,
    bars_of,
    plain,
    points_of,
    save_picture,
    what_bars_are,
)
from apd.bench.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Axis = Literal["shots", "unlabelled"]
_LABELS: Mapping[Axis, str] = {
    "shots": "labelled training images per class",
    "unlabelled": "unlabelled training images",
}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Told apart by colour-blind readers too (Okabe and Ito 2008)."""
_ROWS = 2
"""Rows of small panels beside the mean's."""


@dataclass(frozen=True)
class Line:
    """A method's points in a panel, in the order of x; a constant one depends on neither training images nor seeds."""

    xs: tuple[int, ...]
    ys: tuple[Point, ...]
    constant: bool


@dataclass(frozen=True)
class Picture:
    """One picture.

    Args:
        name: the file's name, without folder and suffix.
        axis: what x counts.
        metric: what y measures.
        note: attack, images, and what the bars are.
        panels: title to the methods' lines; the mean over data sets first, if there is one.
    """

    name: str
    axis: Axis
    metric: str
    note: str
    panels: Mapping[str, Mapping[str, Line]]


def write_curves(folder: Path, tables: Sequence[Table]) -> list[Path]:
    """Write PNG files to ``plots/``; none without matplotlib (the extra ``report``), which `write_plots` says."""
    if find_spec("matplotlib") is None:
        return []
    return [save_picture(folder, picture.name, _drawn(picture)) for picture in pictures(tables)]


def pictures(tables: Sequence[Table]) -> Iterator[Picture]:
    """Yield a picture for each main metric of the tables that differ in shots alone, or in unlabelled images alone."""
    curved = [t for t in tables if t.members and PROTOCOLS[t.protocol].curve == "shots" and attacked(t)]
    axes: tuple[Axis, ...] = ("shots", "unlabelled")
    for axis in axes:
        groups: dict[tuple[str, str, str], list[Table]] = {}
        for table in curved:
            if all(_x(row, axis) is not None for row in table.members):
                key = (_about(table.members[0]), _fixed(table.members[0], axis), table.protocol)
                groups.setdefault(key, []).append(table)
        notes = {about for about, _, _ in groups}
        for (about, fixed, protocol), group in groups.items():
            for metric in (metric for metric in group[0].metrics if metric.main and "(final)" not in metric.name):
                panels = _panels(group, metric, axis)
                if panels:
                    name = f"{protocol} {metric.name} over {axis}{fixed}" + (f", {about}" if len(notes) > 1 else "")
                    drawn = (line for lines in panels.values() for line in lines.values() if not line.constant)
                    note = f"{about}{fixed}; {what_bars_are(point for line in drawn for point in line.ys)}"
                    yield Picture(name, axis, axis_of(metric), note, panels)


def _x(row: TableRow, axis: Axis) -> int | None:
    found = row.shots if axis == "shots" else row.unlabelled
    return found if isinstance(found, int) else None


def _fixed(row: TableRow, axis: Axis) -> str:
    """What all tables of a curve share, in words."""
    if axis == "unlabelled":
        return f", {row.shots} labelled per class"
    return "" if row.unlabelled is None else f", {row.unlabelled} unlabelled"


def _about(row: TableRow) -> str:
    """Attacks and images; not eps, which each data set has for itself."""
    spec = next(iter(row.evals.values()))
    return f"{', '.join(spec.attacks)} on {spec.images}"


def _panels(tables: Sequence[Table], metric: Metric, axis: Axis) -> dict[str, dict[str, Line]]:
    """The panels in which any method has several points: of the means the one over most data sets, then each data set."""
    lines: dict[tuple[str, ...], dict[str, Line]] = {}
    eps: dict[str, str] = {}
    # In one order, as another block may name the same data sets in another one.
    for members in dict.fromkeys(_members(table) for table in tables):
        own = [table for table in tables if _members(table) == members]
        eps |= {row.data: next(iter(row.evals.values())).budget for row in own[0].members}
        # A curve has several points; one alone is left to the tables.
        found = {label: line for label, line in _lines(own, metric, axis).items() if len(line.xs) > 1}
        if found:
            lines[members] = found
    means = sorted((members for members in lines if len(members) > 1), key=len)
    chosen = [*means[-1:], *(members for members in lines if len(members) == 1)]
    return {_title(members, eps): lines[members] for members in chosen}


def _members(table: Table) -> tuple[str, ...]:
    return tuple(sorted(row.data for row in table.members))


def _title(members: Sequence[str], eps: Mapping[str, str]) -> str:
    if len(members) > 1:
        return f"mean over {len(members)} data sets"
    return f"{members[0]}, eps {eps[members[0]]}"


def _lines(tables: Sequence[Table], metric: Metric, axis: Axis) -> dict[str, Line]:
    found: dict[str, dict[int, Point]] = {}
    constant = {label for table in tables for label, sets in table.rows.items() if all(None in seeds for seeds in sets)}
    for table in tables:
        x = _x(table.members[0], axis)
        assert x is not None
        for label, point in points_of(table, metric).items():
            found.setdefault(label, {})[x] = point
    return {
        label: Line(tuple(sorted(points)), tuple(points[x] for x in sorted(points)), label in constant)
        for label, points in found.items()
    }


def _drawn(picture: Picture) -> Figure:
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(label for lines in picture.panels.values() for label in lines))
    titles = list(picture.panels)
    several = len(titles) > 1
    columns = math.ceil((len(titles) - 1) / _ROWS)
    canvas = Figure(figsize=(5 + 2.2 * columns, 4.6), layout="constrained", facecolor="white")
    grid = canvas.add_gridspec(_ROWS, 2 + columns if several else 2)
    for number, title in enumerate(titles):
        place = grid[:, :2] if number == 0 else grid[(number - 1) // columns, 2 + (number - 1) % columns]
        _panel(canvas.add_subplot(place), picture, title, labels, small=number > 0)
    handles, names = canvas.axes[0].get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside upper center", ncols=min(4, len(names)), frameon=False, fontsize="small")
    canvas.axes[0].set(xlabel=_LABELS[picture.axis], ylabel=picture.metric)
    canvas.supxlabel(
        textwrap.fill(picture.note, int(16 * canvas.get_figwidth())), fontsize="x-small", x=0.01, ha="left"
    )
    return canvas


def _panel(axes: Axes, picture: Picture, title: str, labels: Sequence[str], small: bool) -> None:
    lines = picture.panels[title]
    for label, line in lines.items():
        number = labels.index(label)
        axes.errorbar(
            line.xs,
            [point.value for point in line.ys],
            yerr=None if line.constant else bars_of(line.ys),
            color="#777777" if line.constant else _COLOURS[number % len(_COLOURS)],
            linestyle="--" if line.constant else "-",
            marker="" if line.constant else MARKERS[number % len(MARKERS)],
            markersize=3 if small else 5,
            linewidth=1.2 if small else 1.8,
            capsize=2,
            label=plain(label),
        )
    _scale(axes, picture.axis, sorted({x for line in lines.values() for x in line.xs}))
    axes.set_ylim(*_reach(point for line in lines.values() for point in line.ys))
    axes.set_title(plain(title), loc="left", fontsize="x-small" if small else "medium")
    axes.tick_params(labelsize="x-small" if small else "small")
    axes.grid(alpha=0.3)


def _scale(axes: Axes, axis: Axis, ticks: Sequence[int]) -> None:
    """A logarithmic x-axis, to base 2 for shots; with room for 0 where it is among the numbers."""
    base = 2 if axis == "shots" else 10
    if ticks[0] > 0:
        axes.set_xscale("log", base=base)
    else:
        axes.set_xscale("symlog", base=base, linthresh=ticks[1] if len(ticks) > 1 else 1)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()


def _reach(points: Iterable[Point]) -> tuple[float, float]:
    """Limits of the y-axis at whole tens around all bars."""
    ends = [(point.value - point.bar[0], point.value + point.bar[1]) for point in points]
    low = 10 * math.floor(min(low for low, _ in ends) / 10)
    high = 10 * math.ceil(max(high for _, high in ends) / 10)
    low = max(0, min(low, 90))
    return low, min(100, max(high, low + 10))
