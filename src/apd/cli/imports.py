"""`apd import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apd.cli.common import say
from apd.util.text import quoted


def import_(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of a prompt learner, such as model.pth.tar-5.")],
    form: Annotated[str, typer.Option(help="Whose code saved it: coop, maple or fap.")],
    model: Annotated[str, typer.Option(help="The CLIP that it was learned on, as for apd train.")],
    classes: Annotated[Path, typer.Option(metavar="FILE", help="One class name per line, in the order of training.")],
    output: Annotated[Path, typer.Option(help="New run folder.")],
    data: Annotated[str | None, typer.Option(help="Default data of apd evaluate for this run.")] = None,
    eps: Annotated[str, typer.Option(help="Default budget of apd evaluate for this run.")] = "1/255",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run in the output folder.")] = False,
) -> None:
    """Make a run folder of prompts that CoOp's, MaPLe's or FAP's code has learned, to evaluate them here.

    The file is read without executing anything that is in it.

    Examples:
      apd import model.pth.tar-5 --form maple --model openai/clip-vit-base-patch16 --classes names.txt --output runs/maple
      apd import model.pth.tar-10 --form fap --model ViT-B-32.pt --classes names.txt --data dtd@/data --output runs/fap
    """
    from apd.runs.imported import import_run

    run = import_run(checkpoint, form, model, classes, output, data=data, eps=eps, overwrite=overwrite)
    spec = run.manifest["prompts"]
    words = f"; {spec['between']!r} stays before the class names" if spec.get("between") else ""
    say(f"Imported {len(run.manifest['class_names'])} classes from {checkpoint}{words}.")
    say(f"Next: apd evaluate {quoted(run.path)}{'' if data else ' --data DATA'} --attack autoattack")
