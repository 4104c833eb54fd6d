"""Text from outside, such as class and file names, made safe to show: on a terminal, in Markdown, in a shell."""

from __future__ import annotations

import io
import json
import re
import reprlib
import shlex
from collections.abc import Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING

from apd.errors import JOINERS

if TYPE_CHECKING:
    from rich.console import RenderableType

# An underscore or ampersand within ordinary text means nothing; those that do would change how the rest is shown.
_MARKDOWN = re.compile(r"[\\`*\[\]|<>]|~~+|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def printable(text: str) -> str:
    r"""The text with control characters, line breaks and text-direction overrides written as escapes, on one line.

    >>> printable("a\x1b[31mb\nc"), printable("piñata")
    ('a\\x1b[31mb\\nc', 'piñata')
    """
    return "".join(
        char if char.isprintable() or char in JOINERS else char.encode("unicode_escape").decode() for char in text
    )


def one_line(message: object, most: int = 2000) -> str:
    r"""An error's message on one line of bounded length, whatever names and values it quotes.

    >>> one_line("two\nlines"), one_line("x" * 9, most=3)
    ('two lines', 'xxx…')
    """
    text = printable(" ".join(str(message).split()))
    return text if len(text) <= most else f"{text[:most]}…"


def markdown(text: str) -> str:
    r"""`printable` text for a table cell or a line of Markdown, with nothing in it that is read as Markdown or HTML.

    >>> markdown("<b>a|b"), markdown("snow_leopard")
    ('&lt;b&gt;a\\|b', 'snow_leopard')
    """
    return _MARKDOWN.sub(lambda found: _HTML.get(found[0]) or re.sub(r"(.)", r"\\\1", found[0]), printable(text))


def code_span(text: str) -> str:
    """Printable text as Markdown's inline code, whatever backticks it holds.

    >>> code_span("glyphs"), code_span("a`b")
    ('`glyphs`', '`` a`b ``')
    """
    shown = printable(text)
    space = " " if "`" in shown else ""
    return f"{_ticks(shown, 1)}{space}{shown}{space}{_ticks(shown, 1)}"


def code_block(text: str, language: str) -> str:
    """Lines as Markdown's code block, whatever backticks they hold."""
    shown = "\n".join(map(printable, text.rstrip("\n").split("\n")))
    return f"{_ticks(shown, 3)}{language}\n{shown}\n{_ticks(shown, 3)}"


def _ticks(text: str, least: int) -> str:
    """More backticks than stand together anywhere in the text."""
    return "`" * max([least, *(len(run) + 1 for run in re.findall("`+", text))])


def to_json(value: object, indent: int | None = 2) -> str:
    """JSON for files and standard output: characters as they are, or as escapes where some could not be printed."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text if printable(text.replace("\n", "")) == text.replace("\n", "") else json.dumps(value, indent=indent)


def plain(table: RenderableType, width: int = 80) -> str:
    """Return a table for the terminal as text without colours."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def cell(value: object) -> object:
    r"""A value for a CSV file: text without line breaks and control characters, and never a spreadsheet's formula.

    >>> cell("=HYPERLINK(1)"), cell("two\nlines"), cell(-1.5)
    ("'=HYPERLINK(1)", 'two\\nlines', -1.5)
    """
    if not isinstance(value, str):
        return value
    text = to_json(value)[1:-1] if not value.isprintable() else value
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def quoted(path: str | PathLike[str]) -> str:
    """Quote a path or name for a shell, for commands that are suggested.

    >>> quoted("my photos"), quoted("runs/photos")
    ("'my photos'", 'runs/photos')
    """
    return shlex.quote(fspath(path))


def first_of(names: Sequence[str], what: str, shown: int = 3) -> str:
    """The first names, and how many there are in all.

    >>> first_of(["cat", "dog", "cow", "ant"], "classes")
    'cat, dog, cow, … (4 classes)'
    >>> first_of(["a photo of a {}."], "templates"), first_of(["cat"], "classes")
    ('a photo of a {}. (1 template)', 'cat (1 class)')
    """
    more = ", …" if len(names) > shown else ""
    if len(names) == 1:
        what = "class" if what == "classes" else what.removesuffix("s")
    return f"{', '.join(map(printable, names[:shown]))}{more} ({len(names)} {what})"


def short(value: object, most: int = 100) -> str:
    """A value as Python writes it, cut off where it is long.

    >>> short("digits"), short([1] * 1000, most=8)
    ("'digits'", '[1, 1, 1…')
    """
    shortener = reprlib.Repr()
    shortener.maxlist = shortener.maxtuple = shortener.maxdict = 20
    shortener.maxstring = shortener.maxother = shortener.maxlong = most
    text = shortener.repr(value)
    return text if len(text) <= most else f"{text[:most]}…"
