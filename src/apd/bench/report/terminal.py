"""The tables for a terminal: as `markdown` has them, drawn, and split where they are wider than it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from apd.bench.protocols import PROTOCOLS
from apd.bench.report.tables import UNRELIABLE, Table, compared, shown_cells, table_notes
from apd.util.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table as Drawn

_LONGEST = 28
"""Characters of a method's name that are shown."""


def drawn(tables: Sequence[Table], width: int = 80) -> RenderableType:
    """All tables that have rows, for a terminal of ``width`` columns."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for protocol in dict.fromkeys(table.protocol for table in tables):
        own = [table for table in tables if table.protocol == protocol and table.rows]
        parts.append(Text(f"\n{protocol}: {PROTOCOLS[protocol].summary}.", style="bold"))
        for table in own:
            parts += [
                Text(f"\n{printable(f'{table.title}: accuracy in percent; {table.note}')}"),
                *_values(table, width),
            ]
            parts += [Text(printable(note.replace("Bold:", "*:"))) for note in table_notes(table)]
            parts += _differences(table, width)
        if not own:
            parts.append(Text("No run of this protocol has finished."))
    return Group(*parts)


def _values(table: Table, width: int) -> Iterator[Drawn]:
    head = ["method", "seeds", *(metric.name for metric in table.metrics)]
    yield from _split(head, list(shown_cells(table, lambda text: f"*{text}", " ± ", UNRELIABLE)), 2, width)


def _differences(table: Table, width: int) -> Iterator[RenderableType]:
    from rich.text import Text

    found = compared(table, printable, lambda text: f"*{text}")
    if found is not None:
        head, rows, reading = found
        yield from _split(head, rows, 1, width)
        yield Text(f"{reading} *: the best.", style="dim")


def _split(head: Sequence[str], rows: Sequence[Sequence[str]], kept: int, width: int) -> Iterator[Drawn]:
    """A table, as several if it is too wide: each repeats the first ``kept`` columns."""
    widths = [max(_most_words(title), *(len(row[i]) for row in rows)) + 3 for i, title in enumerate(head)]
    widths[0] = min(max(widths[0], len(head[0]) + 3), _LONGEST + 3)  # its title takes one line
    groups: list[list[int]] = [[]]
    for column in range(kept, len(head)):
        if groups[-1] and sum(widths[i] for i in (*range(kept), *groups[-1], column)) + 1 > width:
            groups.append([])
        groups[-1].append(column)
    for group in groups:
        yield _table(head, rows, [*range(kept), *group])


def _most_words(title: str) -> int:
    """Width of the longest word of a column's title, which may take several lines."""
    return max(map(len, title.split()), default=0)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]) -> Drawn:
    from rich.table import Table as Drawn
    from rich.text import Text

    table = Drawn()
    for column in columns:
        first = column == 0
        table.add_column(
            Text(printable(head[column])),
            justify="left" if first else "right",
            no_wrap=first,
            overflow="ellipsis",
            max_width=_LONGEST if first else None,
        )
    for row in rows:
        table.add_row(*(Text(printable(row[column])) for column in columns))
    return table
