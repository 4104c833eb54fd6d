"""A chart of how each model's answer holds as the budget grows, as one SVG picture in the page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from apd.explore.explorer import Budgets, Curve
from apd.explore.page import TITLES, legend_entry

_WIDTH, _HEIGHT = 640, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 16, 14, 60
_TICKS = 4
"""Intervals of each axis."""


def draw_curves(curves: Mapping[str, Curve], budgets: Budgets) -> str:
    """Draw a line for each model; a hollow point is a budget at which the model is fooled.

    Args:
        curves: `Explorer.sweep`'s.
        budgets: the slider's.
    """
    summary = " ".join(_sentence(curve, budgets) for curve in curves.values())
    lines = "".join(_line(curve, budgets.most) for curve in curves.values())
    keys = "".join(legend_entry(f"line-{name}", TITLES[name]) for name in curves)
    return (
        '<section class="apd-card apd-curve" aria-label="Curve over eps"><h3>How far each answer holds</h3>'
        f'<p class="apd-summary">{summary}</p><p class="apd-legend">Probability of the clean answer {keys}</p>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(summary)}">'
        f"{_axes(budgets)}{lines}</svg>"
        '<p class="apd-note">Filled points: the answer holds. Hollow points: fooled. Dashed: the eps of training.</p></section>'
    )


def _sentence(curve: Curve, budgets: Budgets) -> str:
    first = curve.first_fooled
    if first is None:
        return f"{TITLES[curve.name]}: not fooled up to eps {budgets.text(budgets.most)}."
    return f"{TITLES[curve.name]}: first fooled at eps {budgets.text(first)}."


def _x(eps: float, most: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * eps / most


def _y(probability: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - probability)


def _line(curve: Curve, most: float) -> str:
    places = [(_x(eps, most), _y(kept)) for eps, kept in zip(curve.eps, curve.kept, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    points = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="apd-{"held" if holds else "fooled"}-point"/>'
        for (x, y), holds in zip(places, curve.holds, strict=True)
    )
    return f'<g class="apd-stroke-{curve.name}"><polyline points="{path}"/>{points}</g>'


def _axes(budgets: Budgets) -> str:
    parts = []
    for tick in range(_TICKS + 1):
        share = tick / _TICKS
        y, x, eps = _y(share), _x(share, 1), share * budgets.most
        label = f"{eps:g}" if budgets.norm == "linf" else f"{eps:.2g}"
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="apd-grid"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{100 * share:.0f} %</text>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 24}" text-anchor="middle">{label}</text>')
    own, unit = _x(budgets.trained, budgets.most), "n/255" if budgets.norm == "linf" else budgets.norm.upper()
    parts.append(f'<line x1="{own:.1f}" x2="{own:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" class="apd-own"/>')
    parts.append(f'<text x="{_x(0.5, 1):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">eps of the attack ({unit})</text>')
    return "".join(parts)
