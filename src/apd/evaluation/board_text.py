"""A leaderboard for people: in a terminal, as Markdown, as an HTML page; names from outside are escaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

from apd.evaluation.board import Board, Entry, Group
from apd.evaluation.statistics import p_text
from apd.util.text import markdown, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

COLUMNS = ("classifier", "accuracy %", "95 % interval", "to the best", "clean %", "zero-shot %", "reliable", "missing")
_STYLE = (
    "body{font:15px system-ui;margin:2em;max-width:80em}table{border-collapse:collapse;margin:1em 0}"
    "th,td{padding:.3em .7em;border-bottom:1px solid #ccc;text-align:left}"
)


def cells(entry: Entry) -> tuple[str, ...]:
    """The cells of an entry, as plain text that is still to be escaped."""
    low, high = entry.interval
    name = f"{entry.name} ({entry.about})" if entry.about else entry.name
    return (
        name,
        f"{entry.accuracy:.2f}",
        f"{low:.2f} to {high:.2f}",
        _to_best(entry),
        f"{entry.clean:.2f}",
        "-" if entry.undefended is None else f"{entry.undefended:.2f}",
        {True: "yes", False: f"NO: {'; '.join(entry.because)}", None: "unknown"}[entry.reliable],
        ", ".join(entry.missing) or "-",
    )


def _to_best(entry: Entry) -> str:
    if entry.paired is None:
        return "-"
    low, high = entry.paired.interval
    return f"{entry.paired.difference:+.2f} [{low:+.2f}, {high:+.2f}], p {p_text(entry.paired.p)}"


def title(group: Group) -> str:
    """Say what the entries of a group have in common, as plain text that is still to be escaped."""
    images = f"{group.n} images" if group.n >= group.n_available else f"{group.n} of {group.n_available} images"
    under = f" under {group.corruption}" if group.corruption else ""
    unknown = " (not known to be the same images)" if group.images.startswith("unknown") else ""
    return (
        f"{group.data} {group.split}, {images}{under}{unknown}, {group.norm} eps {group.eps} at {group.image_size} px, "
        f"{group.attack}"
    )


def _absent(group: Group) -> str:
    return f"No result here: {', '.join(group.absent)}" if group.absent else ""


def to_markdown(board: Board) -> str:
    """All groups as Markdown tables."""
    parts: list[str] = []
    for group in board.groups:
        rows = [COLUMNS, ("---",) * len(COLUMNS), *(tuple(map(markdown, cells(entry))) for entry in group.entries)]
        parts += [f"### {markdown(title(group))}", "\n".join(f"| {' | '.join(row)} |" for row in rows)]
        parts += [markdown(_absent(group))] if group.absent else []
    parts += [f"Left out: {markdown(line)}" for line in board.left_out]
    return "\n\n".join(parts) + "\n"


def to_html(board: Board) -> str:
    """All groups as an HTML page without scripts."""

    def safe(text: str) -> str:
        return escape(printable(text))

    def row(tag: str, values: Sequence[str], show: Callable[[str], str]) -> str:
        return f"<tr>{''.join(f'<{tag}>{show(value)}</{tag}>' for value in values)}</tr>"

    parts: list[str] = []
    for group in board.groups:
        rows = "\n".join(row("td", cells(entry), safe) for entry in group.entries)
        parts.append(f"<h2>{safe(title(group))}</h2>\n<table>\n{row('th', COLUMNS, safe)}\n{rows}\n</table>")
        parts += [f"<p>{safe(_absent(group))}</p>"] if group.absent else []
    parts += [f"<p>Left out: {safe(line)}</p>" for line in board.left_out]
    head = f'<!doctype html>\n<meta charset="utf-8">\n<title>Leaderboard</title>\n<style>{_STYLE}</style>\n'
    return head + "<h1>Leaderboard</h1>\n" + "\n".join(parts) + "\n"


def to_terminal(board: Board) -> RenderableType:
    """All groups as tables for a terminal: narrow ones, in which names are never cut; reasons stand below."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group as Lines
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for group in board.groups:
        table = Table(title=Text(printable(title(group))), title_justify="left", box=SIMPLE_HEAD)
        table.add_column("classifier", overflow="fold")
        for name in ("accuracy %\n95 % interval", "to the best", "clean %", "zero-\nshot %"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("reliable", no_wrap=True)
        for entry in group.entries:
            style = "red" if entry.reliable is False else None
            table.add_row(*(Text(cell) for cell in _narrow_cells(entry)), style=style)
        parts += [table, *(Text(printable(note)) for note in (*_notes(group), _absent(group)) if note)]
    parts += [Text(printable(f"Left out: {line}"), style="yellow") for line in board.left_out]
    return Lines(*parts)


def _narrow_cells(entry: Entry) -> tuple[str, ...]:
    """The cells of an entry for a terminal, with the interval below the figure."""
    name, accuracy, _, _, clean, undefended, _, _ = map(printable, cells(entry))
    best = "-"
    if entry.paired is not None:
        low, high = entry.paired.interval
        best = f"{entry.paired.difference:+.2f}\n[{low:+.1f}, {high:+.1f}]\np {p_text(entry.paired.p)}"
    interval = "{:.1f} - {:.1f}".format(*entry.interval)
    reliable = {True: "yes", False: "NO", None: "unknown"}[entry.reliable]
    return name, f"{accuracy}\n{interval}", best, clean, undefended, reliable


def _notes(group: Group) -> list[str]:
    """What a narrow table has no room for: why an entry is not reliable, and what it lacks."""
    because = [f"{entry.name} is not reliable: {'; '.join(entry.because)}" for entry in group.entries if entry.because]
    return because + [f"{entry.name} lacks: {', '.join(entry.missing)}" for entry in group.entries if entry.missing]
