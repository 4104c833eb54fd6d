"""Handwriting-like stroke models of the ten digits, as data: polylines and splines through control points.

Coordinates are in a unit box, x to the right and y downwards. Every digit has several variants (a bare 1, a 1 with a
flag, an open 4, a barred 7 ...); a drawing jitters the control points, so no two are alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Point = tuple[float, float]
Stroke = tuple[str, tuple[Point, ...]]
"""A stroke: ``"line"`` (corners at the points) or ``"curve"`` (a smooth spline through them)."""


def _line(*points: Point) -> Stroke:
    return "line", points


def _curve(*points: Point) -> Stroke:
    return "curve", points


DIGITS: dict[str, tuple[tuple[Stroke, ...], ...]] = {
    "0": (
        (_curve((0.5, 0), (0.12, 0.25), (0.1, 0.7), (0.5, 1), (0.88, 0.7), (0.88, 0.28), (0.5, 0)),),
        (_curve((0.6, 0.02), (0.2, 0.2), (0.08, 0.65), (0.4, 1), (0.85, 0.75), (0.9, 0.3), (0.5, 0.05), (0.3, 0.12)),),
        (_curve((0.5, 0), (0.28, 0.2), (0.25, 0.75), (0.5, 1), (0.74, 0.75), (0.74, 0.25), (0.5, 0)),),
    ),
    "1": (
        (_line((0.5, 0), (0.5, 1)),),
        (_line((0.2, 0.28), (0.55, 0), (0.55, 1)),),
        (_line((0.3, 0.18), (0.5, 0), (0.5, 1)),),
        (_line((0.1, 0.45), (0.6, 0), (0.6, 1)),),
        (_line((0.2, 0.28), (0.52, 0), (0.52, 1)), _line((0.2, 1), (0.85, 1))),
        (_line((0.3, 0.2), (0.5, 0), (0.5, 1)), _line((0.25, 0.98), (0.78, 0.98))),
    ),
    "2": (
        (_curve((0.12, 0.22), (0.45, 0), (0.85, 0.22), (0.65, 0.58), (0.1, 1)), _line((0.1, 1), (0.92, 1))),
        (
            _curve((0.1, 0.15), (0.5, 0), (0.8, 0.25), (0.55, 0.65), (0.12, 0.97)),
            _curve((0.12, 0.97), (0.5, 0.93), (0.95, 0.98)),
        ),
        (
            _curve(
                (0.1, 0.2),
                (0.5, 0),
                (0.82, 0.25),
                (0.6, 0.65),
                (0.25, 0.95),
                (0.08, 0.88),
                (0.25, 0.76),
                (0.55, 0.9),
                (0.95, 0.98),
            ),
        ),
        (
            _line((0.12, 0.05), (0.75, 0.05)),
            _curve((0.75, 0.05), (0.8, 0.4), (0.45, 0.7), (0.1, 1)),
            _line((0.1, 1), (0.9, 1)),
        ),
    ),
    "3": (
        (
            _curve((0.1, 0.12), (0.5, 0), (0.85, 0.22), (0.4, 0.47)),
            _curve((0.4, 0.47), (0.9, 0.7), (0.55, 1), (0.08, 0.9)),
        ),
        (
            _line((0.12, 0.02), (0.85, 0.02), (0.45, 0.42)),
            _curve((0.45, 0.42), (0.88, 0.62), (0.65, 0.97), (0.1, 0.95)),
        ),
        (
            _curve((0.15, 0.05), (0.7, 0.02), (0.78, 0.25), (0.55, 0.46)),
            _curve((0.55, 0.46), (0.85, 0.6), (0.8, 0.9), (0.2, 1)),
        ),
        (
            _curve((0.1, 0.1), (0.6, 0), (0.75, 0.3), (0.3, 0.5)),
            _line((0.3, 0.5), (0.7, 0.5)),
            _curve((0.7, 0.5), (0.9, 0.8), (0.1, 1)),
        ),
    ),
    "4": (
        (_line((0.35, 0), (0.1, 0.58), (0.92, 0.58)), _line((0.68, 0.28), (0.62, 1))),
        (_line((0.7, 0), (0.08, 0.66), (0.95, 0.66)), _line((0.7, 0), (0.7, 1))),
        (_line((0.15, 0.02), (0.12, 0.5), (0.8, 0.5)), _line((0.8, 0), (0.76, 1))),
        (_curve((0.2, 0), (0.1, 0.4), (0.3, 0.56), (0.8, 0.45)), _line((0.85, 0.05), (0.7, 1))),
        (_line((0.5, 0), (0.05, 0.7), (0.95, 0.7)), _line((0.6, 0.4), (0.55, 1))),
    ),
    "5": (
        (
            _line((0.85, 0.02), (0.25, 0.02), (0.2, 0.42)),
            _curve((0.2, 0.42), (0.6, 0.36), (0.9, 0.66), (0.6, 0.98), (0.1, 0.93)),
        ),
        (
            _line((0.9, 0), (0.3, 0.03), (0.15, 0.48)),
            _curve((0.15, 0.48), (0.55, 0.42), (0.8, 0.7), (0.5, 0.98), (0.1, 1)),
        ),
        (_curve((0.85, 0.02), (0.35, 0.06), (0.2, 0.35), (0.65, 0.5), (0.8, 0.8), (0.45, 1), (0.1, 0.92)),),
        (
            _line((0.3, 0.05), (0.22, 0.45)),
            _line((0.3, 0.05), (0.95, 0)),
            _curve((0.22, 0.45), (0.75, 0.5), (0.75, 0.9), (0.1, 1)),
        ),
    ),
    "6": (
        (_curve((0.72, 0), (0.3, 0.3), (0.1, 0.7), (0.45, 1), (0.88, 0.76), (0.55, 0.52), (0.14, 0.7)),),
        (_curve((0.5, 0), (0.22, 0.35), (0.15, 0.8), (0.5, 1), (0.85, 0.8), (0.6, 0.56), (0.25, 0.75)),),
        (_curve((0.3, 0), (0.12, 0.45), (0.2, 0.92), (0.6, 1), (0.8, 0.75), (0.5, 0.6), (0.2, 0.8)),),
        (
            _curve(
                (0.85, 0.08), (0.5, 0.02), (0.15, 0.4), (0.15, 0.8), (0.5, 1), (0.85, 0.75), (0.5, 0.48), (0.18, 0.66)
            ),
        ),
    ),
    "7": (
        (_line((0.08, 0.03), (0.9, 0.03), (0.4, 1)),),
        (_line((0.08, 0.03), (0.85, 0.03), (0.4, 1)), _line((0.25, 0.5), (0.85, 0.48))),
        (_line((0.1, 0.2), (0.12, 0.02), (0.9, 0.02)), _curve((0.9, 0.02), (0.55, 0.5), (0.45, 1))),
        (
            _curve((0.05, 0.12), (0.35, 0.03), (0.6, 0.1), (0.9, 0.02)),
            _line((0.9, 0.02), (0.45, 1)),
            _line((0.35, 0.55), (0.9, 0.5)),
        ),
        (_line((0.1, 0.05), (0.8, 0.05), (0.7, 1)), _line((0.4, 0.52), (0.98, 0.52))),
    ),
    "8": (
        (
            _curve((0.5, 0.47), (0.14, 0.24), (0.5, 0), (0.86, 0.24), (0.5, 0.47)),
            _curve((0.5, 0.47), (0.08, 0.76), (0.5, 1), (0.92, 0.76), (0.5, 0.47)),
        ),
        (
            _curve(
                (0.8, 0.12),
                (0.45, 0),
                (0.2, 0.25),
                (0.7, 0.65),
                (0.6, 0.97),
                (0.25, 0.9),
                (0.35, 0.6),
                (0.8, 0.25),
                (0.85, 0.1),
            ),
        ),
        (
            _curve(
                (0.5, 0), (0.2, 0.2), (0.5, 0.5), (0.75, 0.8), (0.5, 1), (0.25, 0.8), (0.5, 0.5), (0.78, 0.2), (0.5, 0)
            ),
        ),
        (_curve((0.85, 0.05), (0.35, 0.05), (0.3, 0.35), (0.75, 0.7), (0.5, 1), (0.2, 0.8), (0.75, 0.3), (0.7, 0.02)),),
    ),
    "9": (
        (_curve((0.86, 0.2), (0.5, 0), (0.12, 0.27), (0.45, 0.52), (0.86, 0.2)), _line((0.86, 0.2), (0.8, 1))),
        (_curve((0.85, 0.25), (0.5, 0), (0.14, 0.26), (0.5, 0.5), (0.85, 0.22), (0.82, 0.75), (0.5, 1), (0.12, 0.92)),),
        (
            _curve((0.8, 0.1), (0.35, 0.04), (0.15, 0.35), (0.5, 0.5), (0.82, 0.15)),
            _curve((0.82, 0.15), (0.75, 0.6), (0.4, 1)),
        ),
        (_curve((0.8, 0.25), (0.5, 0), (0.2, 0.2), (0.4, 0.45), (0.8, 0.25), (0.85, 0.7), (0.65, 0.98), (0.2, 0.97)),),
    ),
}


def spline(points: np.ndarray, steps: int = 10) -> np.ndarray:
    """Catmull-Rom spline through ``points`` (n, 2), ``steps`` samples a segment: (steps * (n - 1) + 1, 2)."""
    ends = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    before, start, stop, after = ends[:-3, None], ends[1:-2, None], ends[2:-1, None], ends[3:, None]
    t = (np.arange(steps) / steps)[None, :, None]
    curve = 0.5 * (
        2 * start
        + (stop - before) * t
        + (2 * before - 5 * start + 4 * stop - after) * t**2
        + (3 * start - before - 3 * stop + after) * t**3
    )
    return np.concatenate([curve.reshape(-1, 2), points[-1:]])


def draw_digit(variant: Sequence[Stroke], jitter: float, rng: np.random.Generator) -> list[np.ndarray]:
    """One jittered drawing of a digit variant: polylines, each (n, 2), in the unit box (about).

    ``jitter`` is the standard deviation of the control points, as a part of the box. Control points that coincide
    are moved together, so strokes that meet keep meeting.
    """
    moved: dict[Point, np.ndarray] = {}
    lines = []
    for kind, points in variant:
        for point in points:
            if point not in moved:
                moved[point] = np.asarray(point) + jitter * rng.standard_normal(2)
        corners = np.stack([moved[point] for point in points])
        lines.append(spline(corners) if kind == "curve" else corners)
    return lines
