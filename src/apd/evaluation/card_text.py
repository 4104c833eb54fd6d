"""What is to be read in a model card's Markdown: text, tables, fenced blocks, raw HTML; what only its source shows is left out.

Cards come from strangers: everything here takes time linear in the text.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from apd.errors import InputError
from apd.util.yaml_files import parse_yaml

LARGEST_CARD = 2**20
"""Bytes that a card may have; ours have some thousands."""
LONGEST_LINE = 10_000
"""Characters of a line, unless the run's files give just this line."""
_FENCE = re.compile(r"\s*(`{3,}(?=[^`]*$)|~{3,})(.*)")
_COMMENT, _COMMENT_END = re.compile(r" {0,3}<!--"), re.compile(r"--!?>")
_RULE = re.compile(r":?-+:?")
_BAR = re.compile(r"\\.|\|")
_MARK = re.compile(r"\\.|`+|<(?=/?[A-Za-z]|[!?])", re.DOTALL)
_EMPHASIS = re.compile(r"</?(?:b|i|em|strong|sub|sup|br|hr|wbr)\s?/?>", re.IGNORECASE)
_HARMLESS = re.compile(rf"{_EMPHASIS.pattern}|<[A-Za-z][\w+.-]{{1,31}}:[^\s<>]*>|<[\w.+-]+@[\w.-]+>", re.IGNORECASE)
"""Tags that hide nothing, and addresses."""


@dataclass(frozen=True)
class Row:
    """A row of a table below its head."""

    heads: tuple[str, ...]
    cells: tuple[str, ...]

    def __str__(self) -> str:
        return " | ".join(self.cells)


@dataclass(frozen=True)
class Section:
    """What stands below a heading: paragraphs and rows."""

    heading: str = ""
    prose: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fence:
    """A fenced block of code."""

    language: str
    lines: list[str]


@dataclass(frozen=True)
class CardText:
    """A model card by its parts.

    Args:
        header: its YAML front matter.
        sections: the first is the part above all headings.
        fences: blocks of code.
        html: tags and other raw HTML, but for what only sets off a word.
    """

    header: Mapping[str, Any]
    sections: list[Section]
    fences: list[Fence]
    html: list[str]

    def words(self) -> set[str]:
        """All words of text and tables."""
        parts = (
            part for each in self.sections for part in (*each.prose, *(cell for row in each.rows for cell in row.cells))
        )
        return {word for part in parts for word in words(part)}


def parse_card(text: str, known_lines: Iterable[str] = ()) -> CardText:
    """Read a card.

    Args:
        text: the whole file, decoded.
        known_lines: lines that may have any length.

    Raises:
        InputError: front matter that is not YAML; a line too long to be read by anybody.
    """
    lines = split_lines(text)
    known = {line for line in known_lines if len(line) > LONGEST_LINE}
    for i, line in enumerate(lines):
        if len(line) > LONGEST_LINE and line not in known:
            raise InputError(f"line {i + 1} of README.md has {len(line):,} characters, more than {LONGEST_LINE:,}")
    header = list[str]()
    if lines[:1] == ["---"] and "---" in lines[1:]:
        end = lines.index("---", 1)
        header, lines = lines[1:end], lines[end + 1 :]
    about = parse_yaml("\n".join(header), "README.md") if header else {}
    reader = _Reader()
    for line in lines:
        reader.line(line)
    reader.end()
    return CardText(about if isinstance(about, dict) else {}, reader.sections, reader.fences, reader.html)


def split_lines(text: str) -> list[str]:
    """Lines as Markdown has them."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


class _Reader:
    """Goes through the lines of a card."""

    def __init__(self) -> None:
        self.sections = [Section()]
        self.fences = list[Fence]()
        self.html = list[str]()
        self._paragraph = list[str]()
        self._heads: tuple[str, ...] = ()
        self._fence = ""
        self._hidden = False

    def line(self, line: str) -> None:
        if self._fence:
            mark = line.strip()
            if mark.startswith(self._fence) and not mark.strip(self._fence[0]):
                self._fence = ""
            else:
                self.fences[-1].lines.append(line)
        elif not self._hidden and (ticks := _FENCE.match(line)):
            self.end()
            self._fence = ticks[1]
            self.fences.append(Fence(" ".join(ticks[2].lower().split()[:1]), []))
        else:
            self._shown(self._without_comments(line))

    def end(self) -> None:
        """A paragraph or table ends here."""
        if self._paragraph:
            text = "\n".join(self._paragraph)
            self.sections[-1].prose.append(text)
            self.html += raw_html(text)
        self._paragraph, self._heads = [], ()

    def _shown(self, line: str) -> None:
        start = line.lstrip(" \t>*+-")
        if _MARK.match(start) and start[:1] == "<" and not _HARMLESS.match(start):
            self.html.append(start)  # a block of HTML, whatever the code around it
        cells = split_cells(line)
        if not line.strip():
            self.end()
        elif line.startswith("#"):
            self.end()
            self.sections.append(Section(line))
            self.html += raw_html(line)
        elif cells:
            self._row(line, cells)
        else:
            if self._heads:
                self.end()
            self._paragraph.append(line)

    def _row(self, line: str, cells: tuple[str, ...]) -> None:
        section = self.sections[-1]
        if all(map(_RULE.fullmatch, cells)):  # the line before it was the table's head
            heads = section.rows.pop().cells if section.rows else ()
            self.end()
            self._heads = heads
            section.heads.extend(heads)
        else:
            if self._paragraph:
                self.end()
            section.rows.append(Row(self._heads, cells))
            self.html += raw_html(line)

    def _without_comments(self, line: str) -> str:
        """The rest of a line after comments, which a reader does not see; they begin at the start of a line."""
        while self._hidden or _COMMENT.match(line):
            begin = 0 if self._hidden else line.index("<!--") + 2
            self._hidden = True
            end = _COMMENT_END.search(line, begin)
            if end is None:
                return ""
            self._hidden, line = False, line[end.end() :]
        return line


def raw_html(text: str) -> Iterator[str]:
    """Yield a piece of HTML in a paragraph, if there is any outside of code and escapes."""
    closing = dict[int, deque[int]]()
    for ticks in re.finditer("`+", text):
        closing.setdefault(len(ticks[0]), deque()).append(ticks.start())
    place, last = 0, text.rfind(">")
    while found := _MARK.search(text, place):
        place = found.end()
        if found[0].startswith("`"):
            ends = closing.get(len(found[0]), deque())
            while ends and ends[0] < place:
                ends.popleft()
            place = ends.popleft() + len(found[0]) if ends else place
        elif found[0] == "<" and found.start() < last and not _HARMLESS.match(text, found.start()):
            yield text[found.start() :]
            return


def split_cells(line: str) -> tuple[str, ...]:
    """The cells of a table's row; none for a line of another kind."""
    if "|" not in line:
        return ()
    inner, cells, begin = line.strip(), list[str](), 0
    bare = inner.startswith("|")
    inner = inner.removeprefix("|")
    for bar in _BAR.finditer(inner):
        if bar[0] == "|":
            cells.append(inner[begin : bar.start()].strip())
            begin = bar.end()
    cells.append(inner[begin:].strip())
    while cells and not cells[-1]:
        cells.pop()
    return tuple(cells) if len(cells) > 1 or bare else ()


def plain(text: str) -> str:
    """Markdown text without its escapes and emphasis, with characters that look alike made the same."""
    text = re.sub(r"\\(.)", r"\1", _EMPHASIS.sub("", text))
    with suppress(ValueError):  # the number of a character with thousands of digits
        text = html.unescape(text)
    return unicodedata.normalize("NFKC", text)


def words(text: str) -> list[str]:
    """The words of a Markdown text without signs around them."""
    stripped = (word.strip("()[]{}*,;:.…%`\"'") for word in plain(text).split())
    return [word for word in stripped if word]
