"""What is shown in a notebook: facts as an HTML table, and a display that is kept up to date below a cell."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from apd.util.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

EVERY = 0.5
"""Seconds between two updates of a display."""
WIDTH = 100
"""Characters in a line of a display; a notebook scrolls where its window is narrower, it breaks no line."""
_PRE = '<pre style="white-space:pre;overflow-x:auto;line-height:1.2;font-family:monospace">{code}</pre>'


def html_facts(title: str, facts: Mapping[str, object]) -> str:
    """Facts as a table of two columns; all of it is text from outside and escaped.

    >>> html_facts("<b>", {"classes": "cat & dog"}).count("&lt;b&gt;")
    1
    """
    return html_table(title, (), ([name, value] for name, value in facts.items()))


def html_table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows as a table whose first column names them; all of it is text from outside and escaped."""

    def cell(tag: str, value: object) -> str:
        return f'<{tag} style="text-align:left">{_text(value)}</{tag}>'

    lines = [f'<table><caption style="text-align:left;font-weight:bold">{_text(title)}</caption>']
    if head:
        lines.append(f"<thead><tr>{''.join(cell('th', name) for name in head)}</tr></thead>")
    body = (f"<tr>{cell('th', first)}{''.join(cell('td', value) for value in more)}</tr>" for first, *more in rows)
    return "\n".join([*lines, "<tbody>", *body, "</tbody></table>"])


def _text(value: object) -> str:
    return escape(printable(str(value)))


class NotebookDisplay:
    """Shows something below a notebook's cell and keeps it up to date from a thread; needs no widgets.

    Has what `apd.util.progress` uses of rich's ``Live``, whose lines break where the window is narrow.

    Args:
        get_renderable: what to show now.
        transient: leave nothing behind.
    """

    console = None
    """Messages need no place of their own: they come as a cell's other output does."""

    def __init__(self, get_renderable: Callable[[], RenderableType], transient: bool) -> None:
        self.get_renderable, self.transient = get_renderable, transient
        self._handle: Any = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def start(self, refresh: bool = True) -> None:
        """Show it for the first time."""
        from IPython.display import display

        self._handle = display(self._content(), raw=True, display_id=True)  # type: ignore[no-untyped-call]
        self._thread.start()

    def stop(self) -> None:
        """Show it for the last time, or take it away."""
        if self._handle is None:
            return
        self._end.set()
        self._thread.join()
        self._handle.update({"text/plain": "", "text/html": ""} if self.transient else self._content(), raw=True)

    def _keep(self) -> None:
        while not self._end.wait(EVERY):
            self._handle.update(self._content(), raw=True)

    def _content(self) -> dict[str, str]:
        from rich.console import Console

        console = Console(file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False, color_system="standard")
        console.print(self.get_renderable())
        text = console.export_text(clear=False)
        return {"text/plain": text, "text/html": console.export_html(inline_styles=True, code_format=_PRE)}
