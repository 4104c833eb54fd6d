"""`apd average`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apd.cli.common import say
from apd.util.text import quoted


def average(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders of apd train.")],
    output: Annotated[Path, typer.Option(help="New run folder.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run in the output folder.")] = False,
) -> None:
    r"""Average the prompts of runs with different seeds, of the same CLIP model, classes and kind of prompts.

    \b
    Example:
      apd average runs/seed0 runs/seed1 --output runs/mean
      apd average runs/seed0 runs/seed1 runs/seed2 --output runs/mean-of-three
    """
    from apd.runs.average import average_runs

    run = average_runs(runs, output, overwrite=overwrite)
    say(f"Averaged {len(runs)} runs. Next: apd evaluate {quoted(run.path)}")
