"""Tables that hold their splits in a column instead of in files of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apd.data.sources.class_names import warn
from apd.data.sources.split_names import WORDS
from apd.errors import InputError
from apd.util.text import first_of

_COLUMN = "split"


def split_by_column(splits: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """The tables by split; one table whose column ``split`` names several splits is divided by it.

    Raises:
        InputError: for values of that column that are splits in part.
    """
    rows = next(iter(splits.values()), None)
    if rows is None or len(splits) > 1 or _COLUMN not in rows.column_names:
        return splits
    values = rows[_COLUMN][:]
    found = [WORDS.get(str(value).strip().casefold()) for value in values]
    if len(set(found)) < 2 and None not in found:
        return splits
    unknown = sorted({str(value) for value, split in zip(values, found, strict=True) if split is None})
    if set(found) == {None}:
        warn(f"The column {_COLUMN!r} of {source} is ignored: {first_of(unknown, 'values')} are not names of splits.")
        return splits
    if unknown:
        raise InputError(
            f"the column {_COLUMN!r} of {source} names splits in some rows, but also {first_of(unknown, 'values')}: write "
            "train, val or test in every row, or rename the column."
        )
    names = sorted({split for split in found if split})
    return {name: rows.select([row for row, split in enumerate(found) if split == name]) for name in names}
