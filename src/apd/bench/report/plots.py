"""The plots of one table: clean against attacked accuracy, or a curve over eps."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from PIL import Image

from apd.attacks.threat import Norm, parse_eps
from apd.bench.protocols import PROTOCOLS, Metric
from apd.bench.report.compare import MeanStd, Seeds, marks_of
from apd.bench.report.tables import Table
from apd.evaluation.statistics import wilson
from apd.runs.output import text_hash
from apd.util.extras import install_command
from apd.util.files import write_atomic
from apd.util.messages import get_logger

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

log = get_logger("apd.bench")

CLEAN, UNDER_ATTACK = "accuracy on clean images (%)", "accuracy under attack (%)"
SEEDS, IMAGES = "bars: standard deviation over seeds", "bars: 95 % interval over images (one training each)"
BOTH = "bars: standard deviation over seeds; of one training, 95 % interval over images"
MARKERS = "os^Dv<>pP*Xh"
"""One per method, so that they are told apart without colours."""
_COLOURS = 128
_LONGEST_NAME = 150


@dataclass(frozen=True)
class Point:
    """One measured accuracy in percent, how far its bar reaches down and up, and over what that is; (0, 0): no bar."""

    value: float
    bar: tuple[float, float] = (0.0, 0.0)
    over: Literal["seeds", "images"] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Series:
    """A method's points: what they lie over (accuracies themselves in a scatter plot), and their accuracies."""

    xs: tuple[Point, ...]
    ys: tuple[Point, ...]


@dataclass(frozen=True)
class Plot:
    """One picture.

    Args:
        name: the file's name, without folder and suffix.
        title: data and shots.
        note: attack, eps, images, and what the bars are.
        labels: what the two axes show.
        series: by method.
        line: a curve over x; else both axes are accuracies.
    """

    name: str
    title: str
    note: str
    labels: tuple[str, str]
    series: Mapping[str, Series]
    line: bool


def write_plots(folder: Path, tables: Sequence[Table]) -> list[Path]:
    """Write PNG files to ``plots/``; without matplotlib (the extra ``report``) only say so."""
    if find_spec("matplotlib") is None:
        log.info(f"No plots: they need matplotlib ({install_command('report')}).")
        return []
    plots = [plot for table in tables if (plot := _plot(table, tables)) is not None]
    taken = Counter(file_name(plot.name) for plot in plots)
    return [_save(folder, plot, apart=taken[file_name(plot.name)] > 1) for plot in plots]


def _told_apart(table: Table, tables: Sequence[Table]) -> str:
    """A table's title, with its note where another one has the same."""
    same = [other for other in tables if (other.protocol, other.title) == (table.protocol, table.title)]
    return table.title if len(same) == 1 else f"{table.title}, {table.note}"


def _plot(table: Table, tables: Sequence[Table]) -> Plot | None:
    """The plot of a table: a curve over eps, or clean against attacked accuracy."""
    if PROTOCOLS[table.protocol].curve == "eps":
        norm, series = _over_eps(table)
        unit = "1/255 of the pixel range" if norm == "linf" else f"{norm}, of the whole image"
        labels = (f"attack budget eps ({unit})", UNDER_ATTACK)
        note = f"{table.note}; {what_bars_are(point for one in series.values() for point in one.ys)}"
        return Plot(f"{table.protocol} {_told_apart(table, tables)}", table.title, note, labels, series, line=True)
    if not attacked(table):
        return None
    name = _told_apart(table, tables)
    clean = next(metric for metric in table.metrics if metric.name == "clean")
    xs, ys = points_of(table, clean), points_of(table, table.main)
    series = {label: Series((xs[label],), (ys[label],)) for label in xs if label in ys}
    labels = (CLEAN, axis_of(table.main))
    note = f"{table.note}; {what_bars_are(point for one in series.values() for point in (*one.xs, *one.ys))}"
    return Plot(f"{table.protocol} {name}", table.title, note, labels, series, line=False)


def axis_of(metric: Metric) -> str:
    """A metric as an axis's label."""
    if len(metric.parts) > 1:
        return (
            f"{metric.name} of clean and attacked accuracy (%)" if metric.mean == "harmonic" else f"{metric.name} (%)"
        )
    return UNDER_ATTACK


def attacked(table: Table) -> bool:
    """Whether a table has clean accuracy and accuracy under attack."""
    return table.main.name != "clean" and "clean" in {metric.name for metric in table.metrics}


def what_bars_are(points: Iterable[Point]) -> str:
    """Say what the bars of the points that are drawn are."""
    kinds = {point.over for point in points} - {None}
    if len(kinds) > 1:
        return BOTH
    return {"seeds": SEEDS, "images": IMAGES}[str(kinds.pop())] if kinds else "one training each"


def seeded(table: Table, metric: Metric) -> bool:
    """Whether any method has several seeds."""
    return any(figure.deviation is not None for figure in table.column(metric).values())


def points_of(table: Table, metric: Metric) -> dict[str, Point]:
    """A metric of each method with its bar: over seeds if any method has several, else over images."""
    several = seeded(table, metric)
    return {label: _point(figure, table.rows[label], metric, several) for label, figure in table.column(metric).items()}


def _point(figure: MeanStd, sets: Sequence[Seeds], metric: Metric, several: bool) -> Point:
    if several:
        bar = figure.deviation or 0.0
        over: Literal["seeds"] | None = None if figure.deviation is None else "seeds"
        return Point(figure.mean, (min(bar, figure.mean), min(bar, 100 - figure.mean)), over)
    if len(metric.parts) > 1 or len(sets) > 1:
        return Point(figure.mean)  # a mean of several accuracies has no such interval
    (cell,) = sets[0].values()
    marks = marks_of(cell, metric.parts[0])
    low, high = wilson(int(marks.sum()), len(marks))
    return Point(figure.mean, (max(0.0, figure.mean - 100 * low), max(0.0, 100 * high - figure.mean)), "images")


def _over_eps(table: Table) -> tuple[Norm, dict[str, Series]]:
    """The norm of the budgets (`EvalSpec.budget`), and curves over them; Linf in 255ths."""
    named = {metric: metric.name.split()[1:] for metric in table.metrics if metric.name.startswith("eps ")}
    norm: Norm = next((norm for norm in get_args(Norm) for words in named.values() if norm in words), "linf")
    unit = 255 if norm == "linf" else 1
    columns = [(unit * parse_eps(words[-1], norm), points_of(table, metric)) for metric, words in named.items()]
    series = {label: _curve((x, column[label]) for x, column in columns if label in column) for label in table.rows}
    return norm, series


def _curve(points: Iterable[tuple[float, Point]]) -> Series:
    known = sorted(points, key=lambda point: point[0])
    return Series(tuple(Point(x) for x, _ in known), tuple(y for _, y in known))


def _save(folder: Path, plot: Plot, apart: bool) -> Path:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(7, 5.2), layout="constrained")
    axes: Axes = canvas.add_subplot()
    for number, (label, series) in enumerate(plot.series.items()):
        xs, ys = ([point.value for point in points] for points in (series.xs, series.ys))
        axes.errorbar(
            xs,
            ys,
            yerr=bars_of(series.ys),
            xerr=None if plot.line else bars_of(series.xs),
            marker=MARKERS[number % len(MARKERS)],
            linestyle="-" if plot.line else "",
            capsize=3,
            clip_on=False,
            label=plain(label),
        )
    axes.set(xlabel=plot.labels[0], ylabel=plot.labels[1], ylim=(0, 100))
    if not plot.line:
        lowest = min((x.value - x.bar[0] for series in plot.series.values() for x in series.xs), default=0.0)
        axes.set(xlim=(max(0, 10 * math.floor((lowest - 5) / 10)), 100))
    axes.set_title(plain(plot.title), loc="left")
    canvas.supxlabel(textwrap.fill(plain(plot.note), 100), fontsize="x-small", x=0.01, ha="left")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return save_picture(folder, plot.name, canvas, apart)


def plain(text: str) -> str:
    """A text as matplotlib shows it, which takes what stands between dollars for a formula."""
    return text.replace("$", r"\$")


def save_picture(folder: Path, name: str, canvas: Canvas, apart: bool = False) -> Path:
    """Write a figure to ``plots/`` as PNG, and return the file; ``apart``: with a hash, as another has that name for a file."""
    drawn, image = io.BytesIO(), io.BytesIO()
    canvas.savefig(drawn, format="png", dpi=150)
    # Lines and text have few colours: with a palette the file is a third as large.
    Image.open(drawn).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(
        image, format="png", optimize=True
    )
    file = folder / "plots" / f"{file_name(name)}{f'-{text_hash(name)}' if apart else ''}.png"
    write_atomic(file, image.getvalue())
    return file


def file_name(name: str) -> str:
    """A title as a file's name, with a hash where letters are lost that may be all that tells two apart, or it is too long."""
    short = re.sub(r"[^A-Za-z0-9.-]+", "-", name)
    lossless = len(short) <= _LONGEST_NAME and not re.search(r"[^A-Za-z0-9.,:;+/() -]", name)
    return short if lossless else f"{short[:_LONGEST_NAME]}-{text_hash(name)}"


def bars_of(points: Sequence[Point]) -> list[tuple[float, ...]]:
    """How far the bars of points reach down and up, as matplotlib takes them."""
    return [tuple(point.bar[end] for point in points) for end in (0, 1)]
