"""`apd export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apd.cli.common import AsJson, MovedModel, quiet_stdout, say
from apd.util.text import printable, to_json

if TYPE_CHECKING:
    from apd.export.exported import Exported
    from apd.export.price import Price

Output = Annotated[Path, typer.Option(help="File to write (a folder for some forms), such as photos.onnx.")]
OpenVocabulary = Annotated[
    bool, typer.Option("--open-vocabulary", help="Keep the text tower, for other class names than the run's.")
]
Measure = Annotated[
    int | None,
    typer.Option(
        help="Measure accuracy of run and export on this many test images, clean and attacked. (default: off)"
    ),
]


def export(
    run: Annotated[Path, typer.Argument(help="Run folder of apd train.")],
    to: Annotated[str, typer.Option("--to", metavar="FORM", help="onnx, torch, huggingface or open_clip.")],
    output: Output,
    precision: Annotated[str, typer.Option(help="float32; for onnx also float16 or int8.")] = "float32",
    open_vocabulary: OpenVocabulary = False,
    measure: Measure = None,
    attack: Annotated[
        str | None, typer.Option(help="Makes the adversarial images of --measure. (default: pgd-20)")
    ] = None,
    eps: Annotated[str | None, typer.Option(help="Budget of --measure, such as 4/255. (default: the run's)")] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="Licence in the card of a huggingface export. (default: other)")
    ] = None,
    model: MovedModel = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a run as files that other programs run, after comparing their logits with the original's.

    A float32 export that differs by more than 0.0001 fails (exit code 1), and nothing is written or replaced. A JSON file beside
    the export describes the preprocessing and names the classes.

    Examples:
      apd export runs/photos --to onnx --output photos.onnx
      apd export runs/photos --to torch --output photos.pt2
      apd export runs/photos --to onnx --precision int8 --output small.onnx --measure 500
      apd export runs/photos --to huggingface --output photos-robust
    """
    from apd.runs.folder import Run

    Run.open(run)  # before torch is imported, so that a wrong folder is told at once
    with quiet_stdout():
        from apd.export.exported import export_run

        options = {"open_vocabulary": open_vocabulary, "overwrite": overwrite, "model": model, "precision": precision}
        more = {"measure": measure, "attack": attack, "eps": eps, "license": license_}
        exported = export_run(
            to, run, output, options | {name: value for name, value in more.items() if value is not None}
        )
    if as_json:
        print(to_json(exported.to_dict()))
    else:
        _show(exported)
    for note in exported.notes:
        say(note)


def _show(exported: Exported) -> None:
    """Print what was written and how far it agrees."""
    batches = ", ".join(map(str, exported.batch_sizes))
    limit = "" if exported.tolerance is None else f" (limit {exported.tolerance:g})"
    print(printable(f"{exported.path}: {exported.form}, {exported.precision}, {exported.bytes / 2**20:.1f} MB"))
    print(f"Largest difference of logits: {exported.max_difference:.2g}{limit}")
    print(printable(f"Compared on {exported.image_source}, at batch {batches}; {exported.same_class:.1f} % same class"))
    if exported.price is not None:
        _show_price(exported.price)
    print(printable(f"How to use it: {exported.description}"))


def _show_price(price: Price) -> None:
    """Print the accuracies of the original and its export."""
    rows = {"clean": price.clean, f"{price.attack}, {price.norm} eps {price.eps}, made on the run": price.adversarial}
    print(printable(f"Accuracy on {price.images} test images of {price.data}, run and export:"))
    for name, (original, exported) in rows.items():
        print(printable(f"  {name}: {original:.1f} % and {exported:.1f} %"))
