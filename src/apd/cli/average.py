"""`apd average`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apd.cli.common import AsJson, quiet_stdout, say
from apd.util.text import quoted, to_json


def average(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders of apd train.")],
    output: Annotated[Path, typer.Option(help="New run folder.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run in the output folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Average the prompts of runs with different seeds, of the same CLIP model, classes and kind of prompts.

    Example:
      apd average runs/seed0 runs/seed1 --output runs/mean
      apd average runs/seed0 runs/seed1 runs/seed2 --output runs/mean-of-three
    """
    from apd.runs.average import average_runs

    with quiet_stdout():
        run = average_runs(runs, output, overwrite=overwrite)
    if as_json:
        print(to_json({"run": str(run.path), "averaged": run.manifest["averaged"]}))
    say(f"Averaged {len(runs)} runs. Next: apd evaluate {quoted(run.path)}")
