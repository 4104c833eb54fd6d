"""`apd demo`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from apd.cli.common import AsJson, quiet_stdout, say
from apd.util.text import quoted, to_json


def demo(
    output: Annotated[Path, typer.Option(help="Folder for its runs and summary.json.")] = Path("runs/demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Only check that everything works: few images, one epoch.")
    ] = False,
    autoattack: Annotated[int, typer.Option(min=0, help="Also attack this many images by AutoAttack: slow.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train on the built-in digits, attack, and compare with zero-shot CLIP: a few minutes on a CPU.

    Examples:
      apd demo
      apd demo --quick --output /tmp/demo
      apd demo --autoattack 100
    """
    from apd.demo import DEMO, QUICK, run_demo

    with quiet_stdout():
        summary = run_demo(output, replace(QUICK if quick else DEMO, few=autoattack))
    if as_json:
        print(to_json(summary))
    else:
        _table(summary)
    say(
        f"Written: {output}/report.png, a picture of the attacks; {output}/summary.json; "
        "a run folder with a model card for each row."
    )
    say(f"A page about it: apd report {quoted(output / 'control')} {quoted(output / 'apd')} --output report.html")
    say("Next, with a folder of your own images (one folder per class), say photos/:")
    say("  apd train photos --model openai/clip-vit-base-patch32 --output runs/photos")
    say("  apd evaluate runs/photos")
    say("  apd predict runs/photos photos/*/*.jpg")


def _table(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    rows, differences = summary["rows"], summary["differences"]
    names = [name for name in rows[0] if name != "method" and not name.startswith("n_")]
    # The clean column, those of the attacks, and the last one where AutoAttack was asked for.
    last = [rows[0]["n_strongest"]] if "n_strongest" in rows[0] else []
    attacked = [rows[0]["n_attacked"]] * (len(names) - 1 - len(last))
    counts = dict(zip(names, [rows[0]["n_clean"], *attacked, *last], strict=True))
    table = Table(title=f"accuracy % on held-out images, attacks at eps {summary['eps']}", title_justify="left")
    table.add_column("method")
    for name in names:
        table.add_column(f"{name}\n{counts[name]} images", justify="right")
    for row in rows:
        table.add_row(row["method"], *(f"{row[name]:.1f}" for name in names))
    console = Console()
    console.print(table)
    for label, found in differences.items():
        points = ", ".join(f"{name} {d['mean']:+.1f} [{d['low']:+.1f}, {d['high']:+.1f}]" for name, d in found.items())
        console.print(f"{label} above the control, in points: {points}", highlight=False, markup=False)
