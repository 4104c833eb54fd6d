"""Put tables that a command has measured between the markers of a page of the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apd.errors import InputError
from apd.util.files import write_atomic

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def between_markers(page: Path, content: str) -> None:
    """Replace what stands between the markers of a page.

    Raises:
        InputError: a page without them.
    """
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise InputError(f"{page} lacks the lines {BEGIN} and {END}; put them where the figures belong.")
    before, rest = text.split(BEGIN, 1)
    write_atomic(page, f"{before}{BEGIN}\n\n{content.strip()}\n\n{END}{rest.split(END, 1)[1]}")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
