"""Tables that hold their splits in a column instead of in files of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apd.data.sources.class_names import warn
from apd.data.sources.split_names import WORDS
from apd.errors import InputError
from apd.util.text import first_of

_COLUMN = "split"


def split_by_column(splits: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """The tables by split; one table with a column ``split``, in any case, is divided by it, unless all is for training.

    Raises:
        InputError: for values of that column that are splits in part.
    """
    rows = next(iter(splits.values()), None)
    if rows is None or len(splits) > 1 or (column := find_column(rows.column_names)) is None:
        return splits
    found = splits_of(rows[column][:], column, source)
    if found is None:
        return splits
    names = sorted(set(found))
    return {name: rows.select([row for row, split in enumerate(found) if split == name]) for name in names}


def find_column(names: Sequence[str]) -> str | None:
    """The column of splits among the names of a table's columns; None for none."""
    return next((name for name in sorted(names, reverse=True) if name.casefold() == _COLUMN), None)


def warn_of_others(columns: Mapping[str, Sequence[str]], source: str) -> None:
    """Warn of a column that holds nothing but names of several splits, but is not called ``split``."""
    for name, values in columns.items():
        words = {WORDS.get(value.strip().casefold()) for value in values}
        if len(words) > 1 and None not in words:
            warn(f"The column {name!r} of {source} holds names of splits; it is not used unless it is called split.")


def splits_of(values: Sequence[object], column: str, source: str) -> list[str] | None:
    """The split of each row (train, val, test) by its column of splits; None if it names none, or train alone.

    Raises:
        InputError: for values that are splits in part.
    """
    words = [WORDS.get(str(value).strip().casefold()) for value in values]
    found = [word for word in words if word]
    if len(found) == len(words):
        return None if set(found) <= {"train"} else found
    unknown = sorted({str(value) for value, word in zip(values, words, strict=True) if word is None})
    if not found:
        warn(f"The column {column!r} of {source} is ignored: {first_of(unknown, 'values')} are not names of splits.")
        return None
    raise InputError(
        f"the column {column!r} of {source} names splits in some rows, but also {first_of(unknown, 'values')}: write "
        "train, val or test in every row, or rename the column."
    )
