"""`apd train`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apd.cli.common import AsJson, Template, log, quiet_stdout, say, say_inputs, say_whole_range
from apd.errors import InputError
from apd.util.progress import counted
from apd.util.text import quoted, to_json

if TYPE_CHECKING:
    from apd.data import Dataset
    from apd.runs.config import RunConfig
    from apd.runs.folder import Run

_LOOKING = 10.0
"""Seconds to check the test images before training."""
_FOR_PHOTOS = "openai/clip-vit-base-patch32"


# Options, declared here so that the command reads at a glance.
Source = Annotated[
    str | None, typer.Argument(help="Folder, split file, hub id (hf:owner/name) or a name; see: apd list data.")
]
Model = Annotated[str | None, typer.Option(help="CLIP model: built-in name, hub id or folder. (default: glyphs)")]
MethodName = Annotated[str | None, typer.Option(help="Training method; see: apd list methods. (default: apd)")]
Shots = Annotated[str | None, typer.Option(help="Training images per class, or all. (default: 16)")]
Unlabelled = Annotated[
    str | None,
    typer.Option(help="More images, whose labels are not used: a folder, a table, or rest (those that are not shots)."),
]
ClassList = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="With --shots 0: one class name per line, if DATA are images without labels."),
]
Eps = Annotated[str | None, typer.Option(help="Budget in [0,1] pixel units, such as 1/255. (default: 1/255)")]
Seed = Annotated[int | None, typer.Option(help="Seed of shots, prompts, order and attacks. (default: 0)")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training images. (default: 30)")]
Output = Annotated[Path | None, typer.Option(help="Run folder. (default: runs/DATA-METHOD-SEED)")]
ConfigFile = Annotated[Path | None, typer.Option(help="YAML file with settings; flags override it.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting; overrides everything else."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output.")]
SkipBadImages = Annotated[bool, typer.Option("--skip-bad-images", help="Leave out unreadable images, and count them.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps. (default: auto)")]


def train(
    data: Source = None,
    model: Model = None,
    method: MethodName = None,
    shots: Shots = None,
    unlabelled: Unlabelled = None,
    classes: ClassList = None,
    template: Template = None,
    eps: Eps = None,
    seed: Seed = None,
    epochs: Epochs = None,
    output: Output = None,
    config: ConfigFile = None,
    set_: Sets = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    skip_bad_images: SkipBadImages = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Make a CLIP model robust on your images.

    Examples:
      apd train digits --eps 14/255 --output runs/digits
      apd train photos --model openai/clip-vit-base-patch32 --eps 1/255 --output runs/photos
      apd train photos --model ./my-clip --shots 4 --set method.teacher=online --set train.optimizer.lr=0.01
      apd train photos --model ./my-clip --method maple --set method.preset=published
      apd train photos --model ./my-clip --unlabelled more-photos
      apd train satellite --model ./my-clip --template 'a satellite photo of {}.'
      apd train more-photos --model ./my-clip --shots 0 --classes classes.txt
      apd train --config runs/photos/config.yaml --seed 1 --output runs/photos-1
      apd train --output runs/photos --resume
    """
    flags: dict[str, Any] = {
        "model": model,
        "data.source": data,
        "data.shots": shots,
        "data.unlabelled": unlabelled,
        "data.class_names": classes,
        "data.templates": template or None,
        "data.skip_bad_images": skip_bad_images or None,
        "method.name": method,
        "train.eps": eps,
        "train.epochs": epochs,
        "train.seed": seed,
        "train.device": device,
    }
    from apd.util.messages import speaking
    from apd.util.processes import is_first_process

    with speaking(quiet=not is_first_process()), quiet_stdout():
        run = _train(flags, config, set_ or [], output, resume, overwrite)
    if as_json and is_first_process():
        print(_json(run))


def _json(run: Run) -> str:
    kept = {key: run.manifest.get(key) for key in ("status", "seconds", "summary", "prompts_sha256", "class_names")}
    return to_json({"run": str(run.path), **kept})


def _train(
    flags: dict[str, Any], file: Path | None, sets: list[str], output: Path | None, resume: bool, overwrite: bool
) -> Run:
    from apd.attacks.threat import parse_eps
    from apd.data import short_name
    from apd.data.load import BUILT_IN
    from apd.models import BUILT_IN as EMBEDDED
    from apd.runs.config import load_config
    from apd.training.start import start_training
    from apd.util.processes import is_first_process
    from apd.util.trust import is_spec

    if resume and file is None:
        file = _settings_of(output, flags["data.source"])
    config = load_config(file, flags, sets)
    if output is None:
        name = f"{short_name(config.data.source)}-{config.method.name}-{config.train.seed}"
        output = Path("runs") / name.replace(":", "-")
    stops = False

    def on_data(data: Dataset) -> None:
        nonlocal stops
        say_inputs(data, config.model, f"; method {config.method.name}, to {output}")
        say_whole_range(parse_eps(config.train.eps, config.train.norm), config.train.norm)
        if config.model in EMBEDDED and config.data.source not in BUILT_IN:
            say(f"{config.model} is {EMBEDDED[config.model]}. For photos give --model, such as {_FOR_PHOTOS}.")
        stops = not config.data.skip_bad_images and _bad_test_images(data)

    try:
        run = start_training(
            config, output=output, resume=resume, overwrite=overwrite, on_data=on_data if is_first_process() else None
        )
    except KeyboardInterrupt:
        say(f"\nStopped. {_kept(output, config)}")
        raise
    more = f"{' --skip-bad-images' if stops else ''}{' --data LABELLED_IMAGES' if config.data.class_names else ''}"
    # Code that only the run folder names is not run.
    for flag, name in (("--data", config.data.source), ("--model", config.model)):
        more += f" {flag} {quoted(name)}" if is_spec(name) and f" {flag} " not in more else ""
    say(f"Done: {run.path}. Next: apd evaluate {quoted(run.path)}{more}")
    return run


def _settings_of(output: Path | None, source: str | None) -> Path | None:
    """The settings of the run to resume; None where a training that is all given has nothing to resume yet.

    Raises:
        InputError: no run is there, and no data to start one with.
    """
    if output is not None and (output / "config.yaml").is_file():
        return output / "config.yaml"
    if source is None:
        raise InputError(
            "--resume needs the run folder: --output RUN."
            if output is None
            else f"{output} holds nothing to resume (a training that is stopped early has saved nothing); start it: "
            f"apd train DATA --output {quoted(output)}"
        )
    return None


def _bad_test_images(data: Dataset) -> bool:
    """Warn about unreadable test images, which training ignores but evaluation does not; return whether there are any."""
    from apd.data.decode import find_bad
    from apd.data.unreadable import how_to_convert

    bad, looked = find_bad(data.test.ids, data.test.sources, _LOOKING, progress=True)
    if bad:
        log.warning(
            f"{next(iter(bad.values()))} Of {looked} test images checked, {len(bad)} cannot be read. Training does "
            "not need them, but apd evaluate stops there: replace or remove them, or leave them out with "
            f"--skip-bad-images.{how_to_convert(data.test.ids[index] for index in bad)}"
        )
    return bool(bad)


def _kept(output: Path, config: RunConfig) -> str:
    """Return what a stopped training has saved, and the command that resumes it."""
    from apd.runs.folder import Run

    try:
        run = Run.open(output, finished=False)
        own, steps = run.config == config, run.steps_kept
    except InputError:
        own = False
    if own and run.finished:
        return f"{output} holds a finished run."
    if own:
        done = counted(steps or 0, "optimiser step")
        return f"Kept: what {done} learned. Resume with: apd train --output {quoted(output)} --resume"
    return f"There was nothing to save yet. Start again with: {shlex.join(['apd', *sys.argv[1:]])}"
