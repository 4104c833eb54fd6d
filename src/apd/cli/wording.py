"""`apd wording`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apd.cli.common import AsJson, Device, JsonOutput, SkipBadImages, judge, quiet_stdout, show, split_names
from apd.util.outputs import check_output_file

if TYPE_CHECKING:
    from apd.evaluation.wording.result import Wording

Change = Annotated[
    list[str] | None,
    typer.Option(help="typos, edits, synonyms, templates; repeated or with commas. (default: all but synonyms)"),
]
Synonyms = Annotated[Path | None, typer.Option(help=r"YAML file of other names, 'class: \[name, ...]'; adds synonyms.")]
Templates = Annotated[Path | None, typer.Option(help="Text file with a template per line. (default: seven of CLIP's)")]
Words = Annotated[
    Path | None, typer.Option(help="Text file of words that no typo or edit may make, such as a dictionary.")
]
Distance = Annotated[int | None, typer.Option(help="Characters per name that typos and edits change. (default: 1)")]
Variants = Annotated[int | None, typer.Option(help="Wordings per kind of typos and edits. (default: 5)")]
Attack = Annotated[str | None, typer.Option(help="Attack on the images, or clean for none. (default: pgd-10)")]


def wording(
    run: Annotated[Path | None, typer.Argument(help="Run folder; without it, give --model and --data.")] = None,
    model: Annotated[str | None, typer.Option(help="CLIP model; with RUN, where its CLIP model is now.")] = None,
    data: Annotated[str | None, typer.Option(help="Labelled images. (default: the run's)")] = None,
    split: Annotated[str | None, typer.Option(help="train, val or test. (default: test)")] = None,
    classes: Annotated[str | None, typer.Option(help="all, base or new. (default: the run's)")] = None,
    change: Change = None,
    synonyms: Synonyms = None,
    templates: Templates = None,
    words: Words = None,
    distance: Distance = None,
    variants: Variants = None,
    attack: Attack = None,
    eps: Annotated[
        str | None, typer.Option(help="Budget of the attack, such as 4/255. (default: the run's; without a run 1/255)")
    ] = None,
    norm: Annotated[str | None, typer.Option(help="linf, l2 or l1. (default: the run's)")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of words, attack and --limit. (default: 0)")] = None,
    limit: Annotated[str | None, typer.Option(help="Number of images, or all. (default: 200)")] = None,
    control: Annotated[bool, typer.Option("--control/--no-control", help="Evaluate zero-shot CLIP too.")] = True,
    skip_bad_images: SkipBadImages = False,
    device: Device = "auto",
    as_json: AsJson = False,
    output: JsonOutput = None,
) -> None:
    """Measure accuracy under other words for the classes, on clean images and on images under attack.

    Class names get typos, searched character edits and synonyms, or stand in other templates; images are attacked under the
    original words (transferred) and under the very words they are judged by (joint). The worst case counts an image only if it
    is right under every wording.

    Examples:
      apd wording runs/photos
      apd wording runs/photos --synonyms synonyms.yaml --attack clean
      apd wording runs/photos --change edits --distance 2 --words /usr/share/dict/words
      apd wording --model glyphs --data digits --eps 14/255 --limit 50
    """
    changes = split_names(change) if change else None
    if synonyms is not None and changes is None:
        changes = ["typos", "edits", "synonyms", "templates"]
    options: dict[str, Any] = {"changes": None if changes is None else tuple(changes), "distance": distance}
    options |= {"variants": variants, "attack": attack, "eps": eps, "norm": norm, "seed": seed, "limit": limit}
    options |= {"split": split, "classes": classes, "synonyms": synonyms, "templates": templates, "words": words}
    options |= {"skip_bad_images": skip_bad_images or None}
    given = {name: value for name, value in options.items() if value is not None}
    given |= {"control": control}
    if output is not None:
        check_output_file(output, "result.json")
    with quiet_stdout():
        found = judge(run, model, data, device, given, _functions, "Attacked images")
    show(found, as_json, output)


def _functions() -> tuple[Callable[..., Wording], Callable[..., Wording]]:
    from apd.evaluation.wording.measure import evaluate_run_wording, evaluate_wording

    return evaluate_run_wording, evaluate_wording
