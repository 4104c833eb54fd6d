"""`apd predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from apd.cli.common import quiet_stdout, say


def predict(
    run: Annotated[Path, typer.Argument(help="Run folder of apd train.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 3,
    model: Annotated[str | None, typer.Option(help="Where the CLIP is now, if it has moved.")] = None,
    skip_bad_images: Annotated[bool, typer.Option("--skip-bad-images", help="Leave unreadable images out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, alone on standard output.")] = False,
) -> None:
    """Classify image files: class and probability.

    \b
    Examples:
      apd predict runs/photos cat.jpg
      apd predict runs/photos *.jpg --top 1 --json
    """
    from apd.predict import predict_files

    with quiet_stdout():
        rows = predict_files(run, images, top=top, model=model, skip_bad=skip_bad_images)
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    if len(rows) < len(images):
        say(f"{len(images) - len(rows)} unreadable images left out.")
    for row in rows:
        named = ", ".join(f"{entry['class']} {100 * entry['probability']:.1f} %" for entry in row["classes"])
        print(f"{row['image']}: {named}")
    say(f"Next: apd evaluate {run} says how far this holds under attack.")
