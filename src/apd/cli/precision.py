"""`apd precision`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apd.cli.common import AsJson, say, split_numbers
from apd.util.text import first_of, one_line, printable, to_json


def precision(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Evaluated folders; several: other seeds.")],
    points: Annotated[
        str, typer.Option(help="Precisions in points, with commas; each gets a number of images.")
    ] = "5,2,1",
    as_json: AsJson = False,
) -> None:
    """Show how precise accuracies are, over images and over trainings, and how many images a precision needs.

    Reads what apd evaluate kept in the run folders: no model is loaded, no attack is run. Several runs are taken for trainings
    that differ in their seed.

    Examples:
      apd precision runs/photos
      apd precision runs/seed0 runs/seed1 runs/seed2 --points 3
    """
    from apd.evaluation.precision import precision as known
    from apd.runs.setting_differences import SEEDS, differences

    wanted = split_numbers("--points", points)
    found = known(runs, wanted)
    for run in runs[1:]:
        other = [
            f"{name} {one_line(a, 60)} / {one_line(b, 60)}"
            for name, a, b in differences(runs[0], run)
            if name not in SEEDS
        ]
        if other:
            say(
                f"{runs[0]} and {run} differ in more than their seed ({first_of(other, 'settings')}): their spread is not that "
                "of other seeds."
            )
    if as_json:
        print(to_json({"accuracies": [one.to_dict() for one in found]}))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    for about in dict.fromkeys(one.about for one in found):
        table = Table()
        heads = ["images under", "n", "accuracy %", "over images", "over trainings", *(f"±{each:g}" for each in wanted)]
        for place, name in enumerate(heads):
            table.add_column(name, justify="right" if place else "left")
        for one in found:
            if one.about == about:
                spread = one.trainings
                trainings = "-" if spread is None or spread.low is None else f"{spread.low:.1f} - {spread.high:.1f}"
                row = [f"{one.accuracy:.2f}", f"{one.images[0]:.1f} - {one.images[1]:.1f}", trainings]
                table.add_row(Text(printable(one.attack)), str(one.n), *row, *map(str, one.needed.values()))
        title = printable(" ".join(filter(None, about)))
        Console().print(Text(f"{title}; 95 % intervals; last columns: images for such an interval"), table)
