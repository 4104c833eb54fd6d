"""Geometry of the page's line charts; the template draws them as SVG.

Drawn here rather than by plotly or matplotlib: plotly's script alone fills the page's 5 MB and does not run in a mail viewer,
and matplotlib's pictures know neither the reader's dark mode, nor the width of a phone, nor a keyboard. Bars are not SVG but
tables with a coloured cell, so that the chart and its table are one thing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 36, 12, 40


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        name: in the legend.
        style: the CSS class that gives it its colour: ``own``, ``other``, ``third`` or ``wrong``.
        points: x and y.
        labels: what each point is, in words.
        intervals: lower and upper end at each point; empty without any.
    """

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str]
    intervals: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Mark:
    """A point as drawn, its whisker, and what it says."""

    x: float
    y: float
    low: float
    high: float
    label: str


@dataclass(frozen=True)
class DrawnLine:
    """A line as drawn: the path and its marks."""

    name: str
    style: str
    path: str
    marks: tuple[Mark, ...]
    dotted: bool


@dataclass(frozen=True)
class Chart:
    """A line chart as drawn, in a box of `WIDTH` by `HEIGHT`.

    Args:
        title: what it shows, also for those who cannot see it.
        summary: what it shows, in a sentence.
        x_name, y_name: axis titles.
        x_ticks, y_ticks: place and text.
        lines: as drawn.
    """

    title: str
    summary: str
    x_name: str
    y_name: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[DrawnLine, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def line_chart(
    title: str,
    summary: str,
    lines: Sequence[Line],
    axes: tuple[str, str],
    *,
    percent: bool = False,
    x_ticks: Sequence[tuple[float, str]] | None = None,
) -> Chart:
    """Lay out a line chart.

    Args:
        title: what it shows.
        summary: the same in a sentence.
        lines: at least one, with at least one point.
        axes: titles of x and y.
        percent: y goes from 0 to 100.
        x_ticks: values and texts; None: round numbers.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_marks = list(x_ticks) if x_ticks is not None else [(x, f"{x:g}") for x in round_ticks(0.0, max(xs))]
    x_low, x_high = min(0.0, *xs), max(*xs, *(x for x, _ in x_marks))
    values = [0.0, 25.0, 50.0, 75.0, 100.0] if percent else round_ticks(min(0.0, *ys), max(ys))
    y_low, y_high = values[0], values[-1]

    def right(x: float) -> float:
        return round(LEFT + (x - x_low) / ((x_high - x_low) or 1.0) * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_low) / ((y_high - y_low) or 1.0) * (HEIGHT - TOP - BOTTOM), 1)

    def drawn(line: Line) -> DrawnLine:
        ends = line.intervals or [(y, y) for _, y in line.points]
        marks = tuple(
            Mark(right(x), down(y), down(low), down(high), label)
            for (x, y), (low, high), label in zip(line.points, ends, line.labels, strict=True)
        )
        path = " ".join(f"{'L' if i else 'M'}{mark.x:g} {mark.y:g}" for i, mark in enumerate(marks))
        return DrawnLine(line.name, line.style, path, marks, dotted=len(marks) <= 40)

    return Chart(
        title,
        summary,
        *axes,
        spaced([(right(x), text) for x, text in x_marks]),
        tuple((down(y), f"{y:g}") for y in values),
        tuple(map(drawn, lines)),
    )


def spaced(ticks: Sequence[tuple[float, str]], space: float = 50.0) -> tuple[tuple[float, str], ...]:
    """Ticks of which those that would be written over a neighbour keep their place but not their text.

    The first and the last keep theirs.
    """
    found = list(ticks[:1])
    for x, text in ticks[1:-1]:
        written = max(place for place, shown in found if shown)
        found.append((x, text if x - written >= space and ticks[-1][0] - x >= space else ""))
    return (*found, *ticks[1:][-1:])


def round_ticks(low: float, high: float) -> list[float]:
    """Round numbers that cover a range, about five of them.

    >>> round_ticks(0, 20), round_ticks(0, 3.79)
    ([0.0, 5.0, 10.0, 15.0, 20.0], [0.0, 1.0, 2.0, 3.0, 4.0])
    """
    span = (high - low) or abs(high) or 1.0
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]
