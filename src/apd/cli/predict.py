"""`apd predict`."""

from __future__ import annotations

import csv
import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from apd.cli.common import AbstainBelow, AsJson, MovedModel, SkipBadImages, quiet_stdout, say, say_calibration
from apd.errors import InputError, nearest
from apd.util.progress import Count, Progress, counted
from apd.util.text import cell, printable, quoted, to_json

if TYPE_CHECKING:
    from apd.predict import Answers

Write = Callable[[dict[str, Any]], Any]
FORMATS = ("table", "json", "csv")
_PATHS = "IMAGES are image files, folders of them, or patterns such as 'new/*.jpg'."
_SHOWN = 20
"""Unreadable files that are named; the others are counted."""


def predict(
    run: Annotated[Path, typer.Argument(help="Run folder of apd train.")],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES...", help="Image files, folders of them, or patterns: 'new/*.jpg'.")
    ],
    top: Annotated[int, typer.Option(min=1, help="Number of classes to print per image.")] = 3,
    model: MovedModel = None,
    abstain_below: AbstainBelow = None,
    skip_bad_images: SkipBadImages = False,
    format_: Annotated[str | None, typer.Option("--format", help="table, json or csv. (default: table)")] = None,
    as_json: AsJson = False,
) -> None:
    """Classify image files: class and probability, calibrated if the run is.

    Files that cannot be read are named at the end (exit code 2).

    Examples:
      apd predict runs/photos cat.jpg
      apd predict runs/photos new --format csv > new.csv
      apd predict runs/photos new --abstain-below 0.8
      apd predict runs/photos *.jpg --top 1 --json
    """
    kind = _format(format_, as_json)
    from apd.runs.folder import Run

    opened = Run.open(run)  # before torch is imported, so that a wrong folder is told at once
    from apd.predict import find_images

    files, complaints = find_images(images, unknown := Counter[str]())
    unreadable, count = list[str](), 0
    try:
        with _writer(kind, min(top, len(opened.manifest["class_names"])), abstain_below is not None) as write:
            for answers in _answers(run, files, {"top": top, "model": model, "abstain_below": abstain_below}):
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
    if unknown:
        say(_of_other_kinds(unknown))
    _tell_unreadable(complaints, unreadable, skip_bad_images, count)
    if count:
        say_calibration(opened)
    if kind == "table":
        say(f"Next: apd evaluate {quoted(run)} measures how well this holds under attack.")


def _tell_unreadable(complaints: list[str], unreadable: list[str], skipping: bool, count: int) -> None:
    """Say which files could not be read: as an error, unless they may be skipped and others were read."""
    if complaints and not (skipping and count):
        _refuse(complaints, unreadable, skipping)
    if complaints:
        _say_left_out(complaints, unreadable)


def _format(asked: str | None, as_json: bool) -> str:
    kind = asked or ("json" if as_json else "table")
    if kind not in FORMATS:
        raise InputError(f"--format cannot be {kind!r}. {nearest(kind, FORMATS)}")
    if as_json and kind != "json":
        raise InputError(f"--json means --format json, but --format {kind} is given too; give only one of them.")
    return kind


def _answers(run: Path, files: list[Path], options: dict[str, Any]) -> Iterator[Answers]:
    """Yield answers as they come, with progress on standard error unless the answers show it themselves."""
    if not files:
        return
    from apd.predict import predict_files

    count, batches = Count(len(files), "images"), predict_files(run, files, **options)
    with nullcontext() if sys.stdout.isatty() else Progress("classifying", count):
        while True:
            with quiet_stdout():
                answers = next(batches, None)
            if answers is None:
                return
            count.advance(len(answers.rows) + len(answers.bad))
            yield answers


@contextmanager
def _writer(kind: str, top: int, abstains: bool) -> Iterator[Write]:
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
        # A carriage return in a file's name would end the row: the writer quotes only what ends its own rows.
        quoted = csv.writer(sys.stdout, lineterminator="\n", quoting=csv.QUOTE_ALL)
        ranked = (f"{what}_{rank}" for rank in range(1, top + 1) for what in ("class", "probability"))
        table.writerow(["image", *ranked, *(["abstained"] if abstains else [])])
        yield lambda row: (quoted if "\r" in row["image"] else table).writerow(_cells(row))


def _print_line(row: dict[str, Any]) -> None:
    named = ", ".join(f"{entry['class']} {100 * entry['probability']:.1f} %" for entry in row["classes"])
    unsure = "abstained; nearest: " if row.get("abstained") else ""
    print(printable(f"{row['image']}: {unsure}{named}"))


def _cells(row: dict[str, Any]) -> list[Any]:
    more = [str(row["abstained"]).lower()] if "abstained" in row else []
    return [_encodable(row["image"]), *(cell(value) for entry in row["classes"] for value in entry.values()), *more]


def _of_other_kinds(unknown: Counter[str]) -> str:
    """Say how many files in the folders are not images, and of which kinds."""
    kinds = [f"{count} {suffix or 'without a suffix'}" for suffix, count in unknown.most_common(5)]
    more = ", ..." if len(unknown) > 5 else ""
    return f"Skipped {counted(unknown.total(), 'file')} of other kinds than images ({', '.join(kinds)}{more})."


def _encodable(name: str) -> str:
    """A file's name, with bytes that are not UTF-8 as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _refuse(complaints: list[str], unreadable: list[str], skipping: bool) -> NoReturn:
    from apd.data.unreadable import how_to_convert

    # Only what is an image's own fault can be left out; of a path that leads nowhere there is nothing to leave.
    nowhere = complaints[: len(complaints) - len(unreadable)]
    first, *others = complaints[len(nowhere) :] + nowhere if unreadable else nowhere
    for complaint in others[: _SHOWN - 1]:
        say(complaint)
    more = f" (And {len(others)} more.)" if others else ""
    leave_out = "" if skipping else ", or leave it out with --skip-bad-images"
    way_out = f"Replace or remove it{leave_out}." if unreadable else _PATHS
    raise InputError(f"{first}{more} {way_out}{how_to_convert(unreadable)}")


def _say_left_out(complaints: list[str], unreadable: list[str]) -> None:
    from apd.data.unreadable import how_to_convert

    if unreadable:
        say(f"{counted(len(unreadable), 'unreadable image')} left out.{how_to_convert(unreadable)}")
    for complaint in complaints[: len(complaints) - len(unreadable)]:
        say(f"Left out: {complaint}")
