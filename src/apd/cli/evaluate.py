"""`apd evaluate`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apd.cli.common import AsJson, Device, JsonOutput, Template, quiet_stdout, say, say_whole_range, show, split_names
from apd.errors import InputError
from apd.runs.reliability import UNRELIABLE
from apd.util.outputs import check_output_file
from apd.util.text import quoted

if TYPE_CHECKING:
    from apd.evaluation import Result
    from apd.evaluation.curve import Curve

# Options whose declaration takes more than a line.
RunFolder = Annotated[
    Path | None, typer.Argument(help="Run folder; without it, give --data and --model or --classifier.")
]
Classifier = Annotated[
    str | None,
    typer.Option(
        help="Any classifier: package.module:factory, which makes a torch module from [0,1] pixels to logits; or coop:FILE, "
        "maple:FILE, fap:FILE, a checkpoint of prompts, with its CLIP as --model."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="CLIP model to evaluate zero-shot; with RUN, where its CLIP model is now; with --classifier, the one of its "
        "prompts, or one to attack beside it."
    ),
]
Data = Annotated[str | None, typer.Option(help="Images to evaluate on. (default: the run's)")]
Split = Annotated[str | None, typer.Option(help="train, val or test. (default: test)")]
Classes = Annotated[str | None, typer.Option(help="all, base or new. (default: the run's)")]
Attacks = Annotated[
    list[str] | None,
    typer.Option(help="Attacks, repeated or separated by commas; see: apd list attacks. (default: apgd-ce+dlr)"),
]
Strong = Annotated[
    bool,
    typer.Option(
        "--strong",
        help="Use AutoAttack, the standard for published numbers: slow. Stronger still: --attack strong.",
    ),
]
Eps = Annotated[
    str | None,
    typer.Option(help="Budget in [0,1] pixel units, such as 4/255. (default: the run's; without a run 1/255)"),
]
Norm = Annotated[str | None, typer.Option(help="linf, l2 or l1. (default: the run's; without a run linf)")]
Corruption = Annotated[
    str | None, typer.Option(help="Corrupt the images before any attack: KIND:SEVERITY, such as fog:3.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of the attacks and of --limit. (default: 0)")]
Limit = Annotated[str | None, typer.Option(help="Number of images, or all. (default: as many as take about 4 minutes)")]
BatchSize = Annotated[int | None, typer.Option(help="Images per batch. (default: by speed, up to 128)")]
SaveImages = Annotated[
    bool,
    typer.Option("--save-images", help="Keep the adversarial images in RUN/images: 16-bit PNG files, and an index."),
]
SkipBadImages = Annotated[bool, typer.Option("--skip-bad-images", help="Leave unreadable images out, and count them.")]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Exit with code 3 if the result is not reliable: a health check failed, or none ran."
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(help="Without RUN, keep results in FOLDER/NAME-HASH. (default: evaluations, for --classifier)"),
]
ImageSize = Annotated[
    int | None, typer.Option(min=1, help="Side of the images that --classifier takes. (default: its image_size)")
]
Budgets = Annotated[
    str | None,
    typer.Option(
        help="Several budgets, separated by commas, in place of --eps: accuracy at each, their mean, the median "
        "minimal eps. Needs --limit."
    ),
]


def evaluate(
    run: RunFolder = None,
    model: Model = None,
    classifier: Classifier = None,
    data: Data = None,
    template: Template = None,
    split: Split = None,
    classes: Classes = None,
    attack: Attacks = None,
    strong: Strong = False,
    eps: Eps = None,
    norm: Norm = None,
    curve: Budgets = None,
    corruption: Corruption = None,
    seed: Seed = None,
    limit: Limit = None,
    batch_size: BatchSize = None,
    save_images: SaveImages = False,
    skip_bad_images: SkipBadImages = False,
    strict: Strict = False,
    folder: Folder = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    as_json: AsJson = False,
    output: JsonOutput = None,
) -> None:
    """Measure clean and robust accuracy, and compare with zero-shot CLIP.

    By default a quick standard attack (apgd-ce+dlr) on a random sample that takes about four minutes on this machine;
    --strong and --limit all are stronger and slower. Outcomes are saved in RUN/results image by image: a second call
    computes only what is new, and an interrupted one is resumed by the same command. The line "reliable:" says whether
    the numbers can be trusted; with --strict the exit code is 3 where they cannot.

    Examples:
      apd evaluate runs/photos
      apd evaluate runs/photos --strict
      apd evaluate runs/photos --strong --limit all
      apd evaluate runs/photos --attack apgd-ce,apgd-dlr --eps 2/255 --limit 500 --json
      apd evaluate runs/photos --save-images
      apd evaluate runs/photos --curve 0.5/255,1/255,2/255,4/255 --limit 200
      apd evaluate runs/base --classes new
      apd evaluate runs/photos --corruption fog:3
      apd evaluate --model openai/clip-vit-base-patch32 --data photos --attack pgd-20 --eps 1/255
      apd evaluate --classifier my_models:robust --data photos --image-size 224 --eps 4/255
    """
    images = {"split": split, "classes": classes, "corruption": corruption, "limit": limit, "batch_size": batch_size}
    threat = {"attacks": _attacks(attack, strong), "eps": eps, "norm": norm, "seed": seed}
    options = {**images, **threat, "skip_bad_images": skip_bad_images or None}
    given = {name: value for name, value in options.items() if value is not None}
    if output is not None:
        check_output_file(output, "result.json")
    asked = _Asked(run, model, classifier, data, template or None, folder, image_size, device, save_images)
    with quiet_stdout(), _stop_explained(asked):
        evaluation = asked.evaluation(given)
        along = None if curve is None else _along(evaluation, curve, given, asked.norm(given))
        result = evaluation() if along is None else along.result
    show(along or result, as_json, output)
    say_whole_range(result.eps, result.norm)
    _suggest(asked, result, given)
    if strict and not result.reliable:  # unknown, too: nobody has looked
        say(f"reliable: {result.reliability.describe()} (--strict: exit code {UNRELIABLE})")
        raise typer.Exit(UNRELIABLE)


def _along(evaluation: Callable[..., Result], budgets: str, given: dict[str, Any], norm: Any) -> Curve:
    """Measure the curve over these budgets, which are read in ``norm``.

    Raises:
        InputError: a number of images is not given, or budgets are wrong; ``--eps`` beside it.
    """
    from apd.evaluation.curve import measure_curve, measured_by, parse_budgets

    if "eps" in given or given.get("limit", "auto") == "auto":
        raise InputError(
            "--curve takes the place of --eps, and needs the same images at each: --limit N, or --limit all."
        )
    return measure_curve(measured_by(evaluation), parse_budgets(split_names([budgets]), norm))


def _attacks(names: list[str] | None, strong: bool) -> list[str] | None:
    """The attacks that are asked for; None for the default."""
    if strong and names:
        raise InputError("--strong means --attack autoattack: give only one of them, or --attack autoattack,OTHERS.")
    if names and not (found := split_names(names)):
        raise InputError(f"--attack {quoted(','.join(names))} names no attack; see: apd list attacks")
    return ["autoattack"] if strong else found if names else None


def _suggest(asked: _Asked, result: Result, given: dict[str, Any]) -> None:
    """Say which commands may come next, with the options that they need, too."""
    run, model, data = asked.run, asked.model, asked.data
    if run is None:
        if asked.classifier is not None:
            say(f"Next: apd leaderboard {quoted(asked.kept_in() or '')}")
        elif data is not None and model is not None:
            threat = _options({"eps": given.get("eps")})
            threat += f" --set train.norm={given['norm']}" if given.get("norm") else ""
            sentences = "".join(_options({"template": sentence}) for sentence in asked.template or ())
            say(f"Next: apd train {quoted(data)} --model {quoted(model)}{sentences}{threat}")
        return
    place, moved = quoted(run), _options({"model": model})
    images = _options({"data": data}) + moved
    found = [
        f"apd report {place}{images}",
        f"apd predict {place} IMAGES{moved}",
        f"apd explore {place}{moved}",
        f"apd export {place} --to onnx --output {quoted(f'{run.resolve().name}.onnx')}{moved}",
    ]
    if "autoattack" not in result.attacks:
        same = _options({name: given.get(name) for name in ("split", "classes", "corruption", "eps", "norm", "seed")})
        skipping = " --skip-bad-images" if given.get("skip_bad_images") else ""
        found.insert(0, f"apd evaluate {place} --strong --limit {result.n}{images}{same}{skipping}")
    say("Next:" + "".join(f"\n  {command}" for command in found))


def _options(values: Mapping[str, object]) -> str:
    """The options that have a value, as they are typed, each after a space."""
    return "".join(f" --{name} {quoted(str(value))}" for name, value in values.items() if value is not None)


@dataclass(frozen=True)
class _Asked:
    """What is evaluated, on what, and where the result is kept."""

    run: Path | None
    model: str | None
    classifier: str | None
    data: str | None
    template: list[str] | None
    folder: Path | None
    image_size: int | None
    device: str
    save_images: bool

    def evaluation(self, given: dict[str, Any]) -> Callable[[], Result]:
        """Return the evaluation to be called; ``given`` are its settings.

        Raises:
            InputError: options that do not go together.
        """
        shared = {"device": self.device, "save_images": self.save_images, **given}
        if self.run is not None:
            self._refuse("with a run folder", "classifier", "template", "folder", "image_size")
            from apd.runs.folder import Run

            Run.open(self.run)  # before torch is imported, so that a wrong folder is told at once
            from apd.evaluation import evaluate_run

            return partial(evaluate_run, self.run, data=self.data, model=self.model, **shared)
        if self.data is None or (self.model is None and self.classifier is None):
            raise InputError("Give a run folder, or --data and one of --model and --classifier.")
        from apd.evaluation.kept import FOLDER, evaluate_classifier, evaluate_zero_shot

        if self.classifier is None:
            self._refuse("without --classifier", "image_size")
            zero_shot = partial(evaluate_zero_shot, str(self.model), self.data, templates=self.template)
            return partial(zero_shot, folder=self.folder, **shared)
        self._refuse("with --classifier", "template")
        more = {"folder": self.folder or FOLDER, "image_size": self.image_size, "model": self.model, **shared}
        return partial(evaluate_classifier, self.classifier, self.data, **more)

    def norm(self, given: dict[str, Any]) -> Any:
        """Return the norm of the attacks: as given, else the run's own, else Linf."""
        if self.run is None or "norm" in given:
            return given.get("norm", "linf")
        from apd.runs.folder import Run

        return Run.open(self.run).config.train.norm

    def _refuse(self, why: str, *names: str) -> None:
        """Refuse options that mean nothing here."""
        for name in names:
            if getattr(self, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} has no meaning {why}; leave it out.")

    def kept_in(self) -> Path | None:
        """The folder in which outcomes are kept, or below which they are."""
        if self.run is not None:
            return self.run / "results"
        return self.folder or (None if self.classifier is None else Path("evaluations"))


@contextmanager
def _stop_explained(asked: _Asked) -> Iterator[None]:
    """On Ctrl-C, say what is kept and how to resume."""
    try:
        yield
    except KeyboardInterrupt as stop:
        say(_stopped(asked.kept_in(), str(stop)))
        raise


def _stopped(place: Path | None, progress: str) -> str:
    """Return the message after Ctrl-C; ``progress`` says how far the attack had come."""
    again = shlex.join(["apd", *sys.argv[1:]])
    if place is None:
        return f"\nStopped. Outcomes are kept in run folders, or with --folder; start again with: {again}"
    kept = f"{progress}, and all that was finished before" if progress else "what was finished before"
    return f"\nStopped. Kept in {place}: {kept}. Resume with: {again}"
