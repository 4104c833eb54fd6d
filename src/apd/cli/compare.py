"""`apd compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apd.cli.common import AsJson, say
from apd.util.text import one_line, printable, quoted, to_json

if TYPE_CHECKING:
    from apd.evaluation.compare import Comparison


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="Evaluated folders, also of other models."),
    ],
    as_json: AsJson = False,
) -> None:
    """Compare runs image by image, each with the first: difference, 95 % interval, p-value.

    Reads what apd evaluate kept in the run folders: no model is loaded, no attack is run.

    Examples:
      apd compare runs/control runs/apd
      apd compare runs/control runs/apd --json
      apd compare evaluations/my-model-0123456789ab runs/apd
    """
    from apd.evaluation.compare import compare_runs

    found = compare_runs(runs)
    if as_json:
        print(to_json({"comparisons": [comparison.to_dict() for comparison in found]}))
        return
    for comparison in found:
        _show(comparison)
    say(f"Next: apd report {' '.join(map(quoted, runs))} --output report.html")


def _show(comparison: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from apd.evaluation.statistics import p_text

    console = Console()
    console.print(Text(f"A {printable(comparison.a)}\nB {printable(comparison.b)}"))
    for name, a, b in comparison.settings:
        console.print(Text(printable(f"  {name}: A {one_line(a, 60)}, B {one_line(b, 60)}")))
    table = Table(
        "images under", caption="B - A in points with 95 % interval; p: McNemar's test", caption_justify="left"
    )
    for name in ("n", "A %", "B %", "B - A", "p"):
        table.add_column(name, justify="right", no_wrap=name != "B - A")
    many = len({(row.images, row.corruption) for row in comparison.rows}) > 1
    for row in comparison.rows:
        parts = [f"{row.images}:" if many else "", row.corruption or "", row.attack]
        parts += [f"{row.norm} {row.eps}" if row.eps else ""]
        low, high = row.interval
        points = f"{row.difference:+.1f} [{low:+.1f}, {high:+.1f}]"
        about = Text(printable(" ".join(filter(None, parts))))
        a, b = (
            f"{value:.1f}{_UNRELIABLE if reliable is False else ''}"
            for value, reliable in ((row.a, row.reliable_a), (row.b, row.reliable_b))
        )
        table.add_row(about, str(row.n), a, b, Text(points), p_text(row.p))
    console.print(table)
    for line in comparison.unreliable:
        console.print(Text(printable(f"{_UNRELIABLE} {line}"), style="bold red"))


_UNRELIABLE = "†"
"""Marks an accuracy that cannot be trusted."""
