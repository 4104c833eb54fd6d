"""Accuracy at several budgets in one call: the curve, its mean, and the budget that fools half of all images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from apd.attacks.threat import Norm, format_eps, parse_eps
from apd.errors import InputError
from apd.evaluation.result import Accuracy, Result
from apd.util.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

Measure = Callable[[float, bool], Result]
"""``measure(eps, checks) -> Result``: an evaluation of the same images at another budget, with or without health checks."""


class Point(Accuracy):
    """Accuracy in percent at a budget, in [0,1] pixel units; ``undefended`` is that of the control."""

    eps: float
    undefended: float | None = None


class Curve(BaseModel):
    """Accuracy against eps, on the same images under the same attacks.

    An image that falls at a budget counts as fallen at every larger one, whose ball holds the same image.

    Args:
        points: by eps, the clean accuracy first.
        expected: mean accuracy in percent over budgets from 0 to the largest, by the trapezoidal rule ("expected robustness", for
            a budget drawn uniformly from there).
        median: the smallest eps known at which less than half of all images are right, and the largest known at which half are
            still: the median of the images' minimal eps lies between, as far as the attacks find it. None: beyond the curve.
        result: the evaluation at the largest budget, with its health checks.
    """

    points: list[Point]
    expected: float
    expected_undefended: float | None
    median: tuple[float, float] | None
    attacks: tuple[str, ...]
    norm: str
    n: int
    data: str
    result: Result

    def to_json(self) -> str:
        """Return it as JSON text."""
        return json.dumps(self.model_dump(mode="json"), indent=2)

    def table(self) -> RenderableType:
        """Return a table for a person."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for name in ("eps", "accuracy %", "95 % interval", "zero-shot %"):
            table.add_column(name, justify="right")
        for point in self.points:
            other = "-" if point.undefended is None else f"{point.undefended:.2f}"
            low, high = point.interval
            table.add_row(self._eps(point.eps), f"{point.accuracy:.2f}", f"{low:.2f} - {high:.2f}", other)
        most = self._eps(self.points[-1].eps)
        lines = [f"Mean accuracy over eps from 0 to {most}: {self.expected:.2f} %"]
        if self.expected_undefended is not None:
            lines[0] += f" (zero-shot {self.expected_undefended:.2f} %)"
        lines.append(self._median_line(most))
        title = f"{printable(self.data)}, {self.n} images, {self.norm}, {printable(', '.join(self.attacks))}"
        return Group(Text(title), table, *map(Text, lines))

    def _median_line(self, most: str) -> str:
        if self.median is None:
            return f"Half of all images are still right at eps {most}; a larger one would tell the median minimal eps."
        low, high = self.median
        if low == high:
            return "Fewer than half of all images are right without an attack: the median minimal eps is 0."
        return f"Median minimal eps: between {self._eps(low)} and {self._eps(high)}"

    def _eps(self, eps: float) -> str:
        return format_eps(eps, self.norm)


def parse_budgets(values: Sequence[str], norm: Norm) -> list[float]:
    """Read the budgets of a curve; sorted, without 0, which is always part of it.

    Raises:
        InputError: none is positive, or one is not a budget.
    """
    budgets = sorted({parse_eps(value, norm) for value in values} - {0.0})
    if not budgets:
        example = {"linf": "1/255,2/255,4/255", "l2": "0.25,0.5,1", "l1": "6,12,24"}[norm]
        raise InputError(f"A curve needs at least one eps above 0, such as {example}.")
    return budgets


def measure_curve(measure: Measure, budgets: Sequence[float], bisections: int = 2) -> Curve:
    """Measure accuracy at each budget, and between those at which it crosses a half.

    Args:
        measure: an evaluation at one budget; its images must not depend on the budget.
        budgets: ascending, above 0.
        bisections: further budgets, each halving the gap in which the median minimal eps lies.

    Raises:
        InputError: no budgets.
    """
    if len(budgets) == 0:
        raise InputError("A curve needs at least one budget.")
    results = {eps: measure(eps, eps == budgets[-1]) for eps in map(float, budgets)}
    for _ in range(bisections):
        gap = _gap(results)
        if gap is None or gap[0] == gap[1]:
            break
        middle = sum(gap) / 2
        results[middle] = measure(middle, False)
    return _curve(dict(sorted(results.items())))


def _right(results: dict[float, Result], undefended: bool = False) -> dict[float, list[bool]] | None:
    """Which images are right at each budget and all smaller ones; at 0, without an attack."""
    first = next(iter(results.values()))
    own = first.undefended_predictions if undefended else first.predictions
    if own is None:
        return None
    standing = [guess == label for guess, label in zip(own["clean"], first.labels, strict=True)]
    found = {0.0: standing}
    for eps, result in results.items():
        if result.ids != first.ids:
            raise InputError("A curve needs the same images at every eps: give a limit, or all.")
        guesses = (result.undefended_predictions if undefended else result.predictions) or {}
        under = zip(*guesses.values(), strict=True)
        now = [all(guess == label for guess in each) for each, label in zip(under, result.labels, strict=True)]
        standing = [before and after for before, after in zip(standing, now, strict=True)]
        found[eps] = standing
    return found


def _gap(results: dict[float, Result]) -> tuple[float, float] | None:
    """The budgets between which fewer than half of all images begin to be right; None if they are nowhere."""
    right = _right(dict(sorted(results.items())))
    assert right is not None
    low = 0.0
    for eps, standing in right.items():
        if 2 * sum(standing) < len(standing):
            return low, eps
        low = eps
    return None


def _curve(results: dict[float, Result]) -> Curve:
    right, other = _right(results), _right(results, undefended=True)
    assert right is not None
    last = list(results.values())[-1]

    def share(standing: Sequence[bool]) -> float:
        return 100 * sum(standing) / len(standing)

    points = [
        Point.of(standing, eps=eps, undefended=None if other is None else round(share(other[eps]), 2))
        for eps, standing in right.items()
    ]
    return Curve(
        points=points,
        expected=round(_mean({eps: share(standing) for eps, standing in right.items()}), 2),
        expected_undefended=None
        if other is None
        else round(_mean({eps: share(standing) for eps, standing in other.items()}), 2),
        median=_gap(results),
        attacks=tuple(last.attacks),
        norm=last.norm,
        n=last.n,
        data=last.data,
        result=last,
    )


def _mean(values: dict[float, float]) -> float:
    """Mean of a function over its range, by the trapezoidal rule."""
    points = list(values.items())
    area = sum((b - a) * (f + g) / 2 for (a, f), (b, g) in pairwise(points))
    return area / (points[-1][0] - points[0][0])


def measured_by(evaluation: Callable[..., Result], checks: bool = True, **settings: Any) -> Measure:
    """Return ``evaluation`` as a function of eps, with the other settings fixed."""
    return lambda eps, checked: evaluation(**settings, eps=repr(float(eps)), checks=checks and checked)
