"""What the commands share."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from apd.errors import InputError
from apd.util.files import write_atomic
from apd.util.messages import get_logger
from apd.util.text import printable, quoted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from apd.data import Dataset
    from apd.runs.folder import Run

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, alone on standard output.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
JsonOutput = Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")]
MovedModel = Annotated[str | None, typer.Option(help="Where the CLIP model is now, if it has moved.")]
SkipBadImages = Annotated[bool, typer.Option("--skip-bad-images", help="Leave unreadable images out.")]
Template = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SENTENCE",
        help="'a satellite photo of {}.', with {} for the class name; repeatable. (default: the data's)",
    ),
]
AbstainBelow = Annotated[
    float | None,
    typer.Option(
        min=0.0, max=1.0, help="Give no answer if the most likely class is less probable than this, from 0 to 1."
    ),
]

_Found = TypeVar("_Found")

log = get_logger("apd.cli")


def say(text: str) -> None:
    """Print a line for people on standard error; standard output is for results."""
    log.info(text)


def say_inputs(data: Dataset, model: str, more: str = "") -> None:
    """Print what a command works on: the first class names, the images per split and the CLIP model."""
    say(f"{data.summary()}; CLIP model {printable(model)}{more}")


def say_whole_range(eps: float, norm: str) -> None:
    """Warn of a budget of 1, which is written by those who mean one step of an 8-bit image."""
    if norm == "linf" and eps == 1:
        say("eps 1 lets an attacker turn any pixel from black to white; one step of an 8-bit image is 1/255.")


def say_calibration(run: Run) -> None:
    """Print whether the probabilities of a run are calibrated, and how to have them so."""
    known = run.calibration
    if known is None:
        say(f"Probabilities are not calibrated. To calibrate them: apd calibrate {quoted(run.path)}")
    else:
        say(f"Probabilities are {known.describe()}.")


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Redirect what libraries print to standard error, so that standard output holds only the result."""
    with redirect_stdout(sys.stderr):
        yield


class Shown(Protocol):
    """A result that people and programs can read."""

    def to_json(self) -> str:
        """The result as JSON text."""

    def table(self) -> RenderableType:
        """The result as a table."""


def show(result: Shown, as_json: bool, output: Path | None) -> None:
    """Print a result as a table or as JSON, and write the JSON to ``output`` if there is one."""
    if output is not None:
        write_atomic(output, result.to_json() + "\n")
    if as_json:
        print(result.to_json())
        return
    from rich.console import Console

    Console().print(result.table())


def judge(
    run: Path | None,
    model: str | None,
    data: str | None,
    device: str,
    given: dict[str, Any],
    functions: Callable[[], tuple[Callable[..., _Found], Callable[..., _Found]]],
    kept: str,
    templates: list[str] | None = None,
) -> _Found:
    """Judge a run, or without one zero-shot CLIP on labelled images.

    Args:
        run: the run folder.
        model: the CLIP model; with a run, where its own is now.
        data: labelled images; with a run, None for its own.
        device: to compute on.
        given: settings that were given.
        functions: imports and returns what judges a run folder, and what judges a classifier on a data set.
        kept: what an interrupted call leaves in a run, for its message.
        templates: those of zero-shot CLIP; None: the data's.

    Raises:
        InputError: neither a run nor both a model and data; templates with a run, which has its own.
    """
    if run is not None:
        if templates:
            raise InputError("--template has no meaning with a run folder; leave it out.")
        from apd.runs.folder import Run

        Run.open(run)  # before torch is imported, so that a wrong folder is told at once
        of_run, _ = functions()
        try:
            return of_run(run, data=data, model=model, device=device, **given)
        except KeyboardInterrupt:
            say(f"\nStopped. {kept} are kept in {run / 'results'}; the same command continues.")
            raise
    if model is None or data is None:
        raise InputError("Give a run folder, or both --model and --data.")
    from apd.evaluation.inputs import zero_shot_on

    _, of_classifier = functions()
    classifier, images = zero_shot_on(model, data, given.get("classes", "all"), device, templates or None)
    return of_classifier(classifier, images, **given)


def split_numbers(flag: str, text: str) -> tuple[float, ...]:
    """Return the numbers in an option, which are separated by commas.

    >>> split_numbers("--radii", "0.1,0.25")
    (0.1, 0.25)
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{flag} takes numbers separated by commas, such as 0.5,2, got {text!r}.") from error


def split_names(values: list[str]) -> list[str]:
    """Return the names in options that are repeated or separated by commas; commas in parentheses belong to a name.

    >>> split_names(["clean,pgd-20", "autoattack"])
    ['clean', 'pgd-20', 'autoattack']
    >>> split_names(["clean,foolbox:LinfPGD(steps=20, rel_stepsize=0.1)"])
    ['clean', 'foolbox:LinfPGD(steps=20, rel_stepsize=0.1)']
    """
    found = (name for value in values for name in re.split(r",(?![^()]*\))", value))
    return [name.strip() for name in found if name.strip()]
