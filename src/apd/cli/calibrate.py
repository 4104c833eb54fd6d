"""`apd calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from apd.cli.common import AsJson, Device, MovedModel, SkipBadImages, quiet_stdout, say
from apd.util.text import quoted, to_json

if TYPE_CHECKING:
    from apd.data.settings import Split


def calibrate(
    run: Annotated[Path, typer.Argument(help="Run folder of apd train.")],
    data: Annotated[str | None, typer.Option(help="Labelled images of the run's classes. (default: the run's)")] = None,
    split: Annotated[str, typer.Option(help="val or test.")] = "val",
    model: MovedModel = None,
    skip_bad_images: SkipBadImages = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Calibrate a run's probabilities by temperature scaling, and keep the temperature in the run.

    apd train does so at its end; this is for older runs, averages, and other images. Predicted classes do not change.

    Examples:
      apd calibrate runs/photos
      apd calibrate runs/photos --data photos-of-today --split test --json
    """
    from apd.runs.folder import Run

    Run.open(run)  # before torch is imported, so that a wrong folder is told at once
    from apd.evaluation import calibrate_run

    where = cast("Split", split)
    with quiet_stdout():
        found = calibrate_run(run, data=data, split=where, model=model, device=device, skip_bad_images=skip_bad_images)
    if as_json:
        print(to_json(found.record()))
    else:
        print(f"Probabilities are now {found.describe()}.")
        if found.ece_after > found.ece_before:
            say(
                f"The calibration error did not fall on these {found.images} images, which may be too few; to use more: "
                f"apd calibrate {quoted(run)} --data LABELLED_IMAGES --split test"
            )
        say(f"Next: apd predict {quoted(run)} IMAGES")
