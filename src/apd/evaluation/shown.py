"""How a result shows itself in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from apd.util.notebook import html_table
from apd.util.text import printable

if TYPE_CHECKING:
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


def _row(row: tuple[str, float, tuple[float, float], float | None]) -> tuple[str, ...]:
    name, accuracy, (low, high), other = row
    return name, f"{accuracy:.2f}", f"{low:.2f} to {high:.2f}", "-" if other is None else f"{other:.2f}"
