"""Published numbers, shown beside ours and marked as other people's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True)
class Published:
    """One published table.

    Args:
        protocol: the protocol of ours that it is shown beside.
        source: paper.
        image_size: side of the model's images in pixels; beside runs on other images the numbers do not belong.
        setting: model, budget, attack, data.
        columns: column names.
        rows: figures in percent by method; None if none is given.
    """

    protocol: str
    source: str
    image_size: int
    setting: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float | None, ...]]


def load_published() -> list[Published]:
    """Read the package's ``assets/published.yaml``."""
    raw: list[dict[str, Any]] = yaml.safe_load((files("apd") / "assets" / "published.yaml").read_text(encoding="utf-8"))
    return [
        Published(
            **{**entry, "columns": tuple(entry["columns"]), "rows": {k: tuple(v) for k, v in entry["rows"].items()}}
        )
        for entry in raw
    ]


def published_markdown(protocol: str, image_size: int | None) -> list[str]:
    """Format the published tables of a protocol as lines of Markdown; none beside runs at another image size."""
    found = [entry for entry in load_published() if (entry.protocol, entry.image_size) == (protocol, image_size)]
    if not found:
        return []
    head = "Published by others. Another model and data: **not comparable** with the figures above."
    return [f"### {protocol}, published numbers", "", head, "", *(line for entry in found for line in _lines(entry))]


def _lines(entry: Published) -> Iterator[str]:
    yield f"{entry.source}: {entry.setting}."
    yield ""
    yield f"| method | {' | '.join(entry.columns)} |"
    yield "|" + "---|" * (1 + len(entry.columns))
    for label, values in entry.rows.items():
        yield f"| {label} | {' | '.join('-' if value is None else f'{value:.2f}' for value in values)} |"
    yield ""
