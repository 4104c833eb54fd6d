"""How a result, and a comparison of two runs, shows itself in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from apd.util.notebook import html_table
from apd.util.text import one_line, printable

if TYPE_CHECKING:
    from apd.evaluation.compare import Comparison
    from apd.evaluation.result import Result


def result_html(result: Result, notes: Sequence[str]) -> str:
    """Return the accuracies of a result beside those of zero-shot CLIP, and lines below them."""
    base = result.undefended
    rows = [("clean", result.clean, result.clean_interval, None if base is None else base.clean)]
    rows += [
        (name, score.accuracy, score.interval, None if base is None else base.attacks[name].accuracy)
        for name, score in result.attacks.items()
    ]
    if len(result.attacks) > 1:
        other = None if base is None else base.worst.accuracy
        rows.append(("worst of all", result.worst.accuracy, result.worst.interval, other))
    under = f" under {result.corruption}" if result.corruption else ""
    title = (
        f"{result.data} {result.split}, {result.n} of {result.n_available} images{under}, {result.norm} eps "
        f"{result.eps_text} at {result.image_size} px"
    )
    table = html_table(title, ("attack", "accuracy %", "95 % interval", "zero-shot %"), map(_row, rows))
    return "\n".join([table, *(f"<div>{escape(printable(note))}</div>" for note in notes)])


def comparison_html(found: Comparison) -> str:
    """Return the differences of two runs, and below them the settings that differ and what cannot be trusted."""
    from apd.evaluation.statistics import p_text

    rows = [
        (
            " ".join(filter(None, (row.images, row.corruption, row.attack, row.norm, row.eps))),
            row.n,
            f"{row.a:.1f}",
            f"{row.b:.1f}",
            f"{row.difference:+.1f} [{row.interval[0]:+.1f}, {row.interval[1]:+.1f}]",
            p_text(row.p),
        )
        for row in found.rows
    ]
    head = ("images under", "n", "A %", "B %", "B - A, points [95 % interval]", "p (McNemar)")
    notes = [f"{name}: A {one_line(a, 60)}, B {one_line(b, 60)}" for name, a, b in found.settings]
    notes += [f"NOT reliable: {line}" for line in found.unreliable]
    table = html_table(f"A {found.a}, B {found.b}", head, rows)
    return "\n".join([table, *(f"<div>{escape(printable(note))}</div>" for note in notes)])


def _row(row: tuple[str, float, tuple[float, float], float | None]) -> tuple[str, ...]:
    name, accuracy, (low, high), other = row
    return name, f"{accuracy:.2f}", f"{low:.2f} to {high:.2f}", "-" if other is None else f"{other:.2f}"
