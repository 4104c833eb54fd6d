"""`apd report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apd.cli.common import Device, quiet_stdout, say


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN [RUN...]", help="Evaluated folders, also of other models."),
    ],
    output: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    curve: Annotated[
        bool, typer.Option("--curve", help="Also attack up to 100 images at five eps, and measure confidences.")
    ] = False,
    images: Annotated[bool, typer.Option("--images/--no-images", help="Show images; needs model and data.")] = True,
    attack: Annotated[str, typer.Option(help="Attack that makes the images that are shown.")] = "pgd-20",
    data: Annotated[str | None, typer.Option(help="Where the evaluated images are. (default: the run's)")] = None,
    model: Annotated[str | None, typer.Option(help="Where the run's CLIP model is now.")] = None,
    device: Device = "auto",
) -> None:
    """Write one HTML page on evaluated runs: results, images under attack, settings. Needs no network.

    Several runs are compared with the first, image by image.

    Examples:
      apd report runs/photos
      apd report runs/photos --curve --output photos.html
      apd report runs/control runs/apd --output both.html
    """
    from apd.report import report as write

    before = output.is_file()
    with quiet_stdout():
        file = write(runs, output, curve=curve, images=images, attack=attack, data=data, model=model, device=device)
    say(f"{'Replaced' if before else 'Written'}: {file} ({file.stat().st_size / 1e6:.1f} MB); open it in a browser.")
    if not curve:
        say("With --curve it also shows the accuracy under weaker and stronger attacks.")
