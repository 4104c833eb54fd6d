"""`apd certify`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apd.cli.common import AsJson, Device, JsonOutput, SkipBadImages, Template, judge, quiet_stdout, show, split_numbers
from apd.util.outputs import check_output_file

if TYPE_CHECKING:
    from apd.evaluation.certified.result import Certified

Sigma = Annotated[float | None, typer.Option(help="Deviation of the noise, in [0,1] pixel units. (default: 0.25)")]
N0 = Annotated[int | None, typer.Option("--n0", help="Draws per image that choose the class. (default: 100)")]
N = Annotated[int | None, typer.Option("--n", help="Draws per image that bound its probability. (default: 1000)")]
Alpha = Annotated[float | None, typer.Option(help="Probability that a certificate is wrong. (default: 0.001)")]
Limit = Annotated[str | None, typer.Option(help="Number of images, or all. (default: 100)")]
Radii = Annotated[
    str | None, typer.Option(help="Radii of the table, separated by commas. (default: multiples of sigma/2)")
]
Attack = Annotated[
    bool,
    typer.Option("--attack", help="Also attack the smoothed classifier at these radii; takes several times as long."),
]
Control = Annotated[bool, typer.Option("--control/--no-control", help="Certify zero-shot CLIP too.")]


def certify(
    run: Annotated[Path | None, typer.Argument(help="Run folder; without it, give --model and --data.")] = None,
    model: Annotated[str | None, typer.Option(help="CLIP model; with RUN, where its CLIP model is now.")] = None,
    data: Annotated[str | None, typer.Option(help="Labelled images. (default: the run's)")] = None,
    template: Template = None,
    split: Annotated[str | None, typer.Option(help="train, val or test. (default: test)")] = None,
    classes: Annotated[str | None, typer.Option(help="all, base or new. (default: the run's)")] = None,
    sigma: Sigma = None,
    n0: N0 = None,
    n: N = None,
    alpha: Alpha = None,
    limit: Limit = None,
    radii: Radii = None,
    attack: Attack = False,
    control: Control = True,
    seed: Annotated[int | None, typer.Option(help="Seed of the noise and of --limit. (default: 0)")] = None,
    skip_bad_images: SkipBadImages = False,
    device: Device = "auto",
    as_json: AsJson = False,
    output: JsonOutput = None,
) -> None:
    """Certify accuracy by randomised smoothing: a lower bound that no attack can break.

    The classifier answers by majority under Gaussian noise; the table says which share of the images keeps its right answer
    whatever happens within an L2 radius. Votes are saved in RUN/results image by image: an interrupted call is resumed by the
    same command. Train for it with: apd train DATA --set train.attack.kind=noise --set train.attack.options.sigma=0.25

    Examples:
      apd certify runs/photos
      apd certify runs/photos --sigma 0.12 --n 10000 --limit 500
      apd certify runs/photos --attack --json
      apd certify --model glyphs --data digits --sigma 0.1
    """
    options: dict[str, Any] = {"sigma": sigma, "n0": n0, "n": n, "alpha": alpha, "seed": seed, "limit": limit}
    options |= {"split": split, "classes": classes, "radii": None if radii is None else split_numbers("--radii", radii)}
    options |= {"skip_bad_images": skip_bad_images or None}
    given = {name: value for name, value in options.items() if value is not None}
    given |= {"attack": attack, "control": control}
    if output is not None:
        check_output_file(output, "result.json")
    with quiet_stdout():
        found = judge(run, model, data, device, given, _functions, "Finished images", template)
    show(found, as_json, output)


def _functions() -> tuple[Callable[..., Certified], Callable[..., Certified]]:
    from apd.evaluation.certified.certify import certify, certify_run

    return certify_run, certify
