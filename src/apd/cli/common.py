"""What the commands share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer

from apd.util.messages import get_logger
from apd.util.text import printable

if TYPE_CHECKING:
    from apd.data import Dataset

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, alone on standard output.")]


log = get_logger("apd.cli")


def say(text: str) -> None:
    """A line for a person; standard output is kept for results."""
    log.info(text)


def say_inputs(data: Dataset, model: str, more: str = "") -> None:
    """Begin a command with what it works on: the first class names, the images per split and the CLIP model."""
    say(f"{data.summary()}; CLIP model {printable(model)}{more}")


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send what libraries print to standard error, so that standard output holds the result alone."""
    with redirect_stdout(sys.stderr):
        yield


def split_names(values: list[str]) -> list[str]:
    """Names from options that may be repeated and may hold commas.

    >>> split_names(["clean,pgd-20", "autoattack"])
    ['clean', 'pgd-20', 'autoattack']
    """
    return [name.strip() for value in values for name in value.split(",") if name.strip()]
