"""CSV and TSV tables: an image file and a class per row, as spreadsheets, labelling tools and competitions write them."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from apd.data.dataset import ImageSet
from apd.data.sources.class_names import readable_names
from apd.data.sources.coop import Row, image_set, locate, plain
from apd.data.sources.split_column import find_column, splits_of, warn_of_others
from apd.data.splits import Pools, split_pool
from apd.errors import InputError
from apd.util.files import read_bounded
from apd.util.text import first_of

SUFFIXES = (".csv", ".tsv")
_IMAGE = ("image", "img", "file", "filename", "file_name", "path", "filepath", "file_path", "image_path", "img_path")
_LABEL = ("label", "labels", "class", "class_name", "category")
_LARGEST = 256 * 2**20
"""Bytes of a table: some million images."""
_COLUMNS = "name them image and label, or train with --set data.columns=[IMAGE,LABEL], in Python columns=(image, label)"
_SEPARATOR = re.compile(r"\Asep=.\r?\n", re.IGNORECASE)
"""The line by which some spreadsheets say what stands between the columns."""
_ALL = "all"


def is_csv(path: Path) -> bool:
    """Whether the path is a CSV or TSV file."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def columns_of(path: Path) -> list[str]:
    """Names of the columns of a table.

    Raises:
        InputError: for a file that is not such a table.
    """
    return _read(path)[0]


def load_csv(path: Path, source: str, columns: tuple[str, str] | None = None) -> Pools:
    """All images of a table whose first row names its columns; a column ``split`` divides it, or makes it a test set.

    Paths of images are as in a CoOp split file (`apd.data.sources.coop.load_coop`); classes are written as text.

    Args:
        path: the file, UTF-8, with commas, semicolons or tabs between the columns.
        source: for messages.
        columns: the image and the label column, where they cannot be told by their names.

    Raises:
        InputError: for what is not such a table, rows without an image or a class, an image that is listed twice, and images
            that are not where they should be.
    """
    head, rows = _read(path)
    image, label = columns or (_column(head, _IMAGE, path), _column(head, _LABEL, path))
    images, labels = _values(head, rows, image, path), _values(head, rows, label, path)
    _refuse_twice(images, rows, path)
    names = sorted(set(labels))
    numbers = {name: number for number, name in enumerate(names)}
    column, splits = _splits(head, rows, path, source)
    found: dict[str, list[Row]] = {}
    for split, file, name in zip(splits or [_ALL] * len(rows), images, labels, strict=True):
        found.setdefault(split, []).append((file, numbers[name], name))
    root, found = locate(path, found, None)
    sets = {split: image_set(own, root, path) for split, own in found.items()}
    readable = readable_names(names)
    if splits is None:
        train, val, test = split_pool(sets[_ALL], readable, source)
        note = "It has no splits: each class is split 60/20/20 by a hash of the paths."
        return Pools(path.stem, source, readable, train, val, test, note=note, divided=True)
    if set(sets) == {"test"}:
        return Pools.of_test(path.stem, source, readable, sets["test"])
    missing = [split for split in ("train", "test") if split not in sets]
    if missing:
        raise InputError(
            f"{path} has no {missing[0]} rows: its column {column!r} must name train and test, or test alone."
        )
    return Pools(path.stem, source, readable, sets["train"], sets.get("val"), sets["test"])


def csv_images(path: Path, source: str, columns: tuple[str, str] | None = None, required: bool = False) -> ImageSet:
    """The images of a table without their labels, which it need not have; of one with splits, those for training.

    Args:
        path: the table.
        source: how the user calls it.
        columns: the first is the image column, if the table has it.
        required: it must have it.

    Raises:
        InputError: as `load_csv`.
    """
    head, rows = _read(path)
    image = columns[0] if columns and (required or columns[0] in head) else _column(head, _IMAGE, path)
    images = _values(head, rows, image, path)
    _refuse_twice(images, rows, path)
    column, splits = _splits(head, rows, path, source)
    chosen = [file for file, split in zip(images, splits or ["train"] * len(images), strict=True) if split == "train"]
    if not chosen:
        raise InputError(f"{path} has no train rows: its column {column!r} names other splits only.")
    root, found = locate(path, {"train": [(file, 0, "") for file in chosen]}, None)
    own = image_set(found["train"], root, path)
    return ImageSet(own.ids, torch.zeros(len(own), dtype=torch.int64), own.sources)


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and the rows with their line numbers; empty lines are left out."""
    content = read_bounded(path, "a table lists images", _LARGEST).removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode()
        text = _SEPARATOR.sub("\n", text)  # an empty line, so that lines keep their numbers
        first = text.lstrip().partition("\n")[0]
        delimiter = max(",;\t", key=first.count)
        # As the csv module wants it: text has more ends of lines than a table has.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
        lines = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}): save it as CSV in UTF-8.") from error
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV table ({error}): close its quotes, or save it as CSV again.") from error
    if len(lines) < 2:
        raise InputError(f"{path} lists no images: it needs a row with the names of the columns, and a row per image.")
    head = [name.strip() for name in lines[0][1]]
    for number, row in lines[1:]:
        if len(row) != len(head):
            raise InputError(
                f"{path} has {len(row)} values in line {number}, but {len(head)} columns in its first line: "
                f"put a value that holds {delimiter!r} in quotes, and leave none out."
            )
    return head, lines[1:]


def _splits(
    head: Sequence[str], rows: Sequence[tuple[int, list[str]]], path: Path, source: str
) -> tuple[str | None, list[str] | None]:
    """The column that names the split of each row, and what it says; None where there is none."""
    column = find_column(head)
    if column is None:
        warn_of_others({name: [row[place] for _, row in rows] for place, name in enumerate(head)}, source)
        return None, None
    return column, splits_of(_values(head, rows, column, path), column, source)


def _column(head: Sequence[str], known: Sequence[str], path: Path) -> str:
    found = [name for name in head if name.casefold() in known]
    if len(found) != 1:
        what = "an image" if known is _IMAGE else "a label"
        raise InputError(
            f"{path} needs {what} column, but has {' and '.join(found) or 'none with such a name'} among "
            f"{first_of(head, 'columns')}: {_COLUMNS}."
        )
    return found[0]


def _values(head: Sequence[str], rows: Sequence[tuple[int, list[str]]], column: str, path: Path) -> list[str]:
    if column not in head:
        raise InputError(f"{path} has no column {column!r}. It has: {first_of(head, 'columns')}.")
    place = head.index(column)
    found = [row[place].strip() for _, row in rows]
    empty = next((number for (number, _), value in zip(rows, found, strict=True) if not value), None)
    if empty is not None:
        raise InputError(f"{path} has nothing in the column {column!r} in line {empty}: fill it or remove the row.")
    return found


def _refuse_twice(images: Sequence[str], rows: Sequence[tuple[int, list[str]]], path: Path) -> None:
    seen: dict[str, int] = {}
    for image, (number, _) in zip(images, rows, strict=True):
        file = plain(image)
        if file in seen:
            raise InputError(
                f"{path} lists {image} twice, in lines {seen[file]} and {number}: an image has one class and one split, so "
                "remove one of them."
            )
        seen[file] = number
