"""`apd verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apd.cli.common import AsJson, Device, quiet_stdout
from apd.util.progress import counted
from apd.util.text import printable, to_json

if TYPE_CHECKING:
    from apd.evaluation.findings import Verification


def verify(
    run: Annotated[Path, typer.Argument(help="Somebody else's run folder.")],
    data: Annotated[
        list[str] | None,
        typer.Option(help="Where its images are here; repeat it for several data sets. (default: where the run says)"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Where its CLIP model is here.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Images per evaluation that are attacked again.")] = 64,
    seed: Annotated[int | None, typer.Option(help="Seed that draws these images. (default: random)")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Check somebody else's run: one line per finding; exit code 0 if it is verified, else 1.

    Compares hashes, settings, results, outcomes, records, health checks and model card with each other, then the images
    and labels with the data, and attacks some images again, drawn anew: the stated accuracies must lie within the
    intervals that these give. Nothing in the run is changed, and no code of it is executed.

    Examples:
      apd verify runs/stranger
      apd verify runs/stranger --data photos --model openai/clip-vit-base-patch32 --samples 200
      apd verify runs/stranger --json
    """
    from apd.evaluation.verify import verify_run

    with quiet_stdout():
        found = verify_run(run, data=data or (), model=model, samples=samples, seed=seed, device=device)
    if as_json:
        print(to_json(found.to_dict()))
    else:
        _show(found)
    if not found.verified:
        raise typer.Exit(1)


def _show(found: Verification) -> None:
    for finding in found.findings:
        where = f" [{finding.result}]" if finding.result else ""
        print(printable(f"{'ok  ' if finding.ok else 'FAIL'} {finding.about}: {finding.message}{where}"))
    judged = "verified" if found.verified else f"NOT verified: {counted(len(found.failed), 'finding')}"
    print(f"{judged} (repeat with --samples {found.samples} --seed {found.seed})")
