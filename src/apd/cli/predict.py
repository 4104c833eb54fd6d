"""`apd predict`."""

from __future__ import annotations

import csv
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from apd.cli.common import AsJson, quiet_stdout, say
from apd.errors import InputError, nearest
from apd.util.progress import Count, Progress, counted
from apd.util.text import printable, quoted, to_json

if TYPE_CHECKING:
    from apd.predict import Answers

Write = Callable[[dict[str, Any]], Any]
FORMATS = ("table", "json", "csv")
_SHOWN = 20
"""Unreadable files that are named; the others are counted."""


def predict(
    run: Annotated[Path, typer.Argument(help="Run folder of apd train.")],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES...", help="Image files, folders of them, or patterns: 'new/*.jpg'.")
    ],
    top: Annotated[int, typer.Option(min=1, help="Number of classes to print per image.")] = 3,
    model: Annotated[str | None, typer.Option(help="Where the CLIP model is now, if it has moved.")] = None,
    skip_bad_images: Annotated[bool, typer.Option("--skip-bad-images", help="Leave unreadable images out.")] = False,
    format_: Annotated[str | None, typer.Option("--format", help="table, json or csv. (default: table)")] = None,
    as_json: AsJson = False,
) -> None:
    r"""Classify image files: class and probability. Files that cannot be read are named at the end (exit code 2).

    \b
    Examples:
      apd predict runs/photos cat.jpg
      apd predict runs/photos new --format csv > new.csv
      apd predict runs/photos *.jpg --top 1 --json
    """
    kind = _format(format_, as_json)
    from apd.runs.folder import Run

    names = Run.open(run).manifest["class_names"]  # before torch is imported, so that a wrong folder is told at once
    from apd.predict import find_images

    files, complaints = find_images(images)
    unreadable: list[str] = []
    count = 0
    try:
        with _writer(kind, min(top, len(names))) as write:
            for answers in _answers(run, files, top, model):
                for row in answers.rows:
                    write(row)
                    count += 1
                sys.stdout.flush()
                complaints += answers.bad.values()
                unreadable += answers.bad
    except KeyboardInterrupt:
        say(f"\nStopped: answers for {count} of {counted(len(files), 'image')} are printed, nothing else is kept.")
        say(f"For all of them: {shlex.join(['apd', *sys.argv[1:]])}")
        raise
    if complaints and not (skip_bad_images and count):
        _refuse(complaints, unreadable)
    if complaints:
        _say_left_out(complaints, unreadable)
    if kind == "table":
        say(f"Next: apd evaluate {quoted(run)} says how far this holds under attack.")


def _format(asked: str | None, as_json: bool) -> str:
    kind = asked or ("json" if as_json else "table")
    if kind not in FORMATS:
        raise InputError(f"--format knows no {kind!r}. {nearest(kind, FORMATS)}")
    if as_json and kind != "json":
        raise InputError(f"--json is --format json, but --format {kind} is asked for, too; give one of them.")
    return kind


def _answers(run: Path, files: list[Path], top: int, model: str | None) -> Iterator[Answers]:
    """Yield answers as they come, with progress on standard error unless the answers show it themselves."""
    if not files:
        return
    from apd.predict import predict_files

    count, batches = Count(len(files), "images"), predict_files(run, files, top=top, model=model)
    with nullcontext() if sys.stdout.isatty() else Progress("classifying", count):
        while True:
            with quiet_stdout():
                answers = next(batches, None)
            if answers is None:
                return
            count.advance(len(answers.rows) + len(answers.bad))
            yield answers


@contextmanager
def _writer(kind: str, top: int) -> Iterator[Write]:
    """Yield a function that prints a row; JSON is closed at the end even after an error, so it stays valid."""
    if kind == "table":
        yield _print_line
    elif kind == "json":
        entries = 0

        def write(row: dict[str, Any]) -> None:
            nonlocal entries
            print(",\n" if entries else "[\n", textwrap.indent(to_json(row), "  "), sep="", end="")
            entries += 1

        try:
            yield write
        finally:
            print("\n]" if entries else "[]")
    else:
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(
            ["image", *(f"{what}_{rank}" for rank in range(1, top + 1) for what in ("class", "probability"))]
        )
        yield lambda row: table.writerow(
            [_encodable(row["image"]), *(value for entry in row["classes"] for value in entry.values())]
        )


def _print_line(row: dict[str, Any]) -> None:
    named = ", ".join(f"{entry['class']} {100 * entry['probability']:.1f} %" for entry in row["classes"])
    print(printable(f"{row['image']}: {named}"))


def _encodable(name: str) -> str:
    """A file's name, with bytes that are not UTF-8 as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _refuse(complaints: list[str], unreadable: list[str]) -> NoReturn:
    from apd.data.unreadable import how_to_convert

    for complaint in complaints[1:_SHOWN]:
        say(complaint)
    more = f" (And {len(complaints) - 1} more.)" if len(complaints) > 1 else ""
    raise InputError(
        f"{complaints[0]}{more} Replace or remove it, or leave it out with --skip-bad-images.{how_to_convert(unreadable)}"
    )


def _say_left_out(complaints: list[str], unreadable: list[str]) -> None:
    from apd.data.unreadable import how_to_convert

    if unreadable:
        say(f"{counted(len(unreadable), 'unreadable image')} left out.{how_to_convert(unreadable)}")
    for complaint in complaints[: len(complaints) - len(unreadable)]:
        say(f"Left out: {complaint}")
