"""`apd predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from apd.cli.common import AsJson, quiet_stdout, say
from apd.errors import InputError
from apd.heartbeat import counted
from apd.text import printable, quoted, to_json


def predict(
    run: Annotated[Path, typer.Argument(help="Run folder of apd train.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 3,
    model: Annotated[str | None, typer.Option(help="Where the CLIP is now, if it has moved.")] = None,
    skip_bad_images: Annotated[bool, typer.Option("--skip-bad-images", help="Leave unreadable images out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Classify image files: class and probability. Files that cannot be read are named at the end (exit code 2).

    \b
    Examples:
      apd predict runs/photos cat.jpg
      apd predict runs/photos *.jpg --top 1 --json
    """
    from apd.run import Run

    Run.open(run)  # before torch is imported, so that a wrong folder is told at once
    from apd.predict import predict_files

    with quiet_stdout():
        rows, bad = predict_files(run, images, top=top, model=model)
    if as_json:
        print(to_json(rows))
    else:
        _show(rows)
    if bad and not (skip_bad_images and rows):
        more = f" (And {len(bad) - 1} more.)" if len(bad) > 1 else ""
        raise InputError(f"{bad[0]}{more} Replace or remove it, or leave it out with --skip-bad-images.")
    if as_json:
        return
    if bad:
        say(f"{counted(len(bad), 'unreadable image')} left out.")
    say(f"Next: apd evaluate {quoted(run)} says how far this holds under attack.")


def _show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        named = ", ".join(f"{entry['class']} {100 * entry['probability']:.1f} %" for entry in row["classes"])
        print(printable(f"{row['image']}: {named}"))
