"""Check parquet files before the datasets library joins them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from apd.errors import InputError


def refuse_other_orders(files: Sequence[Path]) -> None:
    """Refuse parquet files whose labels count other class names, which would be joined by their numbers.

    Raises:
        InputError: naming the two files.
    """
    first: dict[str, tuple[Path, list[str]]] = {}
    for file in files:
        for column, names in _class_labels(file).items():
            other, known = first.setdefault(column, (file, names))
            if names != known:
                differs = next(
                    pair for pair in zip([*known, "none"], [*names, "none"], strict=False) if len(set(pair)) > 1
                )
                raise InputError(
                    f"{file} names the labels of its column {column!r} differently from {other.name} ({differs[1]!r} instead of "
                    f"{differs[0]!r}): write both with one list of class names."
                )


def _class_labels(file: Path) -> dict[str, list[str]]:
    """The class names by column that the datasets library noted in the file; empty for files it did not write."""
    from pyarrow import ArrowException, parquet

    try:
        noted = (parquet.read_schema(file).metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(noted).get("info", {}).get("features", {})
    except (OSError, ValueError, AttributeError, ArrowException):  # what cannot be read is told of when it is loaded
        return {}
    labels = {column: feature for column, feature in features.items() if isinstance(feature, dict)}
    return {
        column: list(feature["names"])
        for column, feature in labels.items()
        if feature.get("_type") == "ClassLabel" and "names" in feature
    }
