"""Whether a model card states what the run's files give.

Facts are compared, not words, so that a card keeps its truth when a later version words it otherwise: settings, accuracies with
what they are of, verdicts, and the numbers among the circumstances.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from apd.methods import METHODS
from apd.runs.card import render_card
from apd.runs.folder import Run
from apd.runs.manifest import RESULT_WAY_OUT
from apd.runs.output import summary_files
from apd.runs.reliability import reliability
from apd.util.files import LARGEST_JSON, parse_yaml, read_bounded, read_json, read_yaml
from apd.util.text import one_line

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_FIGURE = re.compile(
    r"(-?\d+(?:\.\d+)?)\s*(?:%|percent)|(?<![\w/])(\d+/\d+)(?![\w/])|(\d+)(?: of (\d+))?(?: \w+){0,2} images"
)
"""In text: percentages, budgets and numbers of images."""
_VERDICT = re.compile(r"reliable\W+(yes|no|unknown)\b", re.IGNORECASE)
_RULE = re.compile(r":?-+:?")
_CELL = re.compile(r"((?:\\.|[^\\|])*)(?:\||$)")
_ORDINARY = {"95", "100"}
"""Numbers that any wording may have: of a 95 % interval, of a whole."""
_WORDED = ("probabilities", "training images", "validation images", "unlabelled images")
"""Circumstances whose rows hold words instead of values."""
_MANY_CELLS = 4
"""A row of more cells says by itself which evaluation it is of; one of fewer belongs to the text above it."""

_Accuracy = tuple[float, float, float]


@dataclass(frozen=True)
class _Row:
    heads: list[str]
    cells: list[str]

    def __str__(self) -> str:
        return " | ".join(self.cells)


@dataclass(frozen=True)
class _Section:
    """What stands below a heading."""

    prose: list[str] = field(default_factory=list)
    rows: list[_Row] = field(default_factory=list)


@dataclass(frozen=True)
class _Card:
    header: Mapping[str, Any]
    settings: Sequence[Any]
    sections: Sequence[_Section]

    def circumstances(self) -> Iterator[_Row]:
        return (row for each in self.sections for row in each.rows if len(row.cells) == 2)

    def words(self) -> set[str]:
        """All words of text and tables, and numbers that any wording may have."""
        rows = (cell for each in self.sections for row in each.rows for cell in row.cells)
        text = (line for each in self.sections for line in each.prose)
        return {word for part in chain(rows, text) for word in _words(part)} | _ORDINARY


@dataclass(frozen=True)
class _Fact:
    """One accuracy of an evaluation: under ``clean``, an attack, or ``worst`` of several."""

    name: str
    own: _Accuracy
    base: _Accuracy | None


class _Stated:
    """What one evaluation gives a card to state."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        base = result.get("undefended") or {}
        own, control = _scores(result), _scores(base) if base else {}
        self.facts = [_Fact(name, accuracy, control.get(name)) for name, accuracy in own.items()]
        self.attacks = set(_words(" ".join(result["attacks"])))
        data = f"{result['data']} {result.get('corruption') or ''}"
        self.where = {*_words(data), *_words(f"{result['norm']} {result['eps_text']}")}
        self.n = str(result["n"])
        sampled = str(result.get("n_available", result["n"]))
        self.about = {*self.where, self.n, sampled, str(result["seed"]), str(result.get("split", "test"))}
        self.verdict = {True: "yes", False: "no", None: "unknown"}[reliability(result).reliable]
        self.failed = [check["name"] for check in result.get("checks", ()) if check["passed"] is False]

    def states(self, row: _Row, fact: _Fact) -> bool:
        """Whether a row of a table states this accuracy, and nothing else."""
        zero = next((i for i, head in enumerate(row.heads) if "zero-shot" in head.lower()), None)
        words = [_words(cell) for i, cell in enumerate(row.cells) if i != zero] or [[]]
        flat = [word for cell in words for word in cell]
        numbers = [word for word in flat if _NUMBER.fullmatch(word)]
        if not any(_same(numbers[i : i + 3], fact.own) for i in range(len(numbers) - 2)):
            return False
        needed = {*_words(fact.name)} | (self.where | {self.n} if len(row.cells) > _MANY_CELLS else set())
        name = {"worst", *self.attacks} if fact.name == "worst" else {*_words(fact.name)}
        allowed = self.about | name | {_round(value, word) for word in numbers for value in fact.own}
        verdicts = {*words[-1]} & {"yes", "no", "unknown"}
        names = {word for word in flat if any(map(str.isdigit, word)) or word in {"clean", "worst", *self.attacks}}
        if zero is not None and zero < len(row.cells):
            control = [word for word in _words(row.cells[zero]) if _NUMBER.fullmatch(word)]
            if control and not (fact.base and _same(control, fact.base)):
                return False
        return needed <= {*flat} and names <= allowed and verdicts <= {self.verdict}


def check_card(run: Run) -> str | None:
    """Say what the model card of a run states that its files do not give; None where all of it is true.

    Raises:
        InputError: a file that cannot be read.
    """
    results = [read_json(each, RESULT_WAY_OUT) for each in summary_files(run.results)]
    given = _parse(render_card(run.path, run.manifest, run.config, results))
    card = _parse(read_bounded(run.path / "README.md", "evaluate again", LARGEST_JSON).decode())
    settings = read_yaml(run.path / "config.yaml")
    stated = [_Stated(result) for result in results]
    problems = chain(_header_problems(card, given, run), _problems(card, given, settings, stated))
    return next(problems, None)


def _problems(card: _Card, given: _Card, settings: object, stated: Sequence[_Stated]) -> Iterator[str]:
    known = given.words()
    if any(block not in (settings, *given.settings) for block in card.settings):
        yield "its settings are not those of config.yaml"
    yield from _circumstance_problems(card, given, known)
    found = set[tuple[int, str]]()
    for section in card.sections:
        rows = [row for row in section.rows if len(row.cells) > 2 and any(map(_NUMBER.search, row.cells))]
        own = [each for each in stated if all(any(each.states(row, fact) for fact in each.facts) for row in rows)]
        if any(len(row.cells) <= _MANY_CELLS for row in rows):
            yield from _section_problems(section, own)
        for row in rows:
            facts = [(i, fact.name) for i, each in enumerate(stated) for fact in each.facts if each.states(row, fact)]
            if not facts:
                yield f"no result gives {one_line(row, 100)}"
            found.update(facts if len(row.cells) > _MANY_CELLS else ())
        yield from _prose_problems(section, known)
    for i, each in enumerate(stated):
        for fact in each.facts:
            if (i, fact.name) not in found:
                yield f"it lacks {fact.own[0]:.1f} % ({fact.name}, {one_line(' '.join(sorted(each.where)), 60)})"


def _header_problems(card: _Card, given: _Card, run: Run) -> Iterator[str]:
    model, tags, known = card.header.get("base_model"), card.header.get("tags"), given.words()
    if model is not None and model != run.manifest["model"]["source"]:
        yield f"its base_model is {one_line(model, 60)}"
    named = {tag for tag in (tags if isinstance(tags, list) else ()) if isinstance(tag, str)} & {*METHODS}
    if named and run.config.method.name not in named:
        yield "its tags name another method"
    for value in _numbers(card.header):
        if not _among(str(value), known):
            yield f"its header holds the figure {value}"


def _circumstance_problems(card: _Card, given: _Card, known: set[str]) -> Iterator[str]:
    """Say which circumstances are others than those of the run; one under another label must still be of the run."""
    rows = {row.cells[0]: row.cells[1] for row in given.circumstances()}
    for row in card.circumstances():
        label, value = row.cells
        words, own = _words(value), rows.get(label)
        allowed = known if own is None else {*_words(own)}
        wrong = [word for word in words if any(map(str.isdigit, word)) and not _among(word, allowed)]
        if own is not None and label not in _WORDED:
            rest = iter(words)  # in this order: that of the classes is one of the facts
            wrong += [word for word in _words(own) if not any(map(str.isdigit, word)) and word not in rest]
        if wrong:
            yield f"{one_line(label, 40)} is stated as {one_line(value, 60)}"


def _section_problems(section: _Section, own: Sequence[_Stated]) -> Iterator[str]:
    """Say what is wrong with a short table: its rows are of one evaluation, which the text around it names and judges."""
    if not own:
        yield "the figures of a table are not those of one evaluation"
        return
    words, text = {word for line in section.prose for word in _words(line)}, " ".join(section.prose)
    named = [each for each in own if each.where | {each.n} <= words]
    if not named:
        yield "the text with a table does not name the evaluation that it is of"
    verdicts = {verdict.lower() for verdict in _VERDICT.findall(text)}
    if named and verdicts and not any({each.verdict} == verdicts for each in named):
        yield f"it is called reliable: {', '.join(sorted(verdicts))}"
    plain = " ".join(_words(text))
    if named and verdicts and not any(all(" ".join(_words(n)) in plain for n in each.failed) for each in named):
        yield "it does not name the health checks that failed"


def _prose_problems(section: _Section, known: set[str]) -> Iterator[str]:
    for line in section.prose:
        for found in _FIGURE.finditer(_plain(line)):
            wrong = [figure for figure in found.groups() if figure is not None and not _among(figure, known)]
            if wrong:
                yield f"no result gives {one_line(found[0], 60)}"


def _parse(text: str) -> _Card:
    lines = text.splitlines()
    header, fence, block, settings = list[str](), "", list[str](), list[Any]()
    if lines[:1] == ["---"] and "---" in lines[1:]:
        end = lines.index("---", 1)
        header, lines = lines[1:end], lines[end + 1 :]
    sections, heads = [_Section()], list[str]()
    for line in lines:
        ticks = re.match(r"\s*(`{3,}|~{3,})", line)
        if fence:
            if line.strip() == fence:
                settings += [parse_yaml("\n".join(block[1:]), "README.md")] if block[0].strip().endswith("yaml") else []
                fence = ""
            else:
                block.append(line)
        elif ticks:
            fence, block = ticks[1], [line]
        elif line.startswith("#"):
            sections.append(_Section())
        elif len(cells := _cells(line)) > 1:
            if all(_RULE.fullmatch(cell) for cell in cells):  # the line before it was the table's head
                heads = sections[-1].rows.pop().cells if sections[-1].rows else []
            else:
                sections[-1].rows.append(_Row(heads, cells))
            continue
        else:
            sections[-1].prose.append(line)
        heads = []
    about = parse_yaml("\n".join(header), "README.md") if header else {}
    return _Card(about if isinstance(about, dict) else {}, settings, sections)


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|")
    cells = [found.strip() for found in _CELL.findall(inner)]
    while cells and not cells[-1]:
        cells.pop()
    return cells if "|" in line else []


def _plain(text: str) -> str:
    """Markdown text without its escapes."""
    return html.unescape(re.sub(r"\\(.)", r"\1", text))


def _words(text: str) -> list[str]:
    stripped = (word.strip("()[]{}*,;:.…%`\"'") for word in _plain(text).split())
    return [word for word in stripped if word]


def _numbers(value: object) -> Iterator[int | float]:
    """Yield all numbers in a value of YAML, whose parts may hold each other."""
    open_, seen = [value], set[int]()
    while open_:
        each = open_.pop()
        if isinstance(each, int | float) and not isinstance(each, bool):
            yield each
        elif isinstance(each, dict | list) and id(each) not in seen:
            seen.add(id(each))
            open_ += each.values() if isinstance(each, dict) else each


def _scores(scores: Mapping[str, Any]) -> dict[str, _Accuracy]:
    """Return what a card may state of a result or its control: accuracies in percent with their intervals."""
    found = {"clean": (scores["clean"], *scores["clean_interval"])}
    entries = {**scores["attacks"], **({"worst": scores["worst"]} if len(scores["attacks"]) > 1 else {})}
    return found | {name: (entry["accuracy"], *entry["interval"]) for name, entry in entries.items()}


def _round(value: float, like: str) -> str:
    """A value with as many decimals as another text has."""
    return f"{value:.{len(like.partition('.')[2])}f}"


def _among(word: str, known: set[str]) -> bool:
    """Whether a word is known, or a number that is, with more or fewer decimals."""
    if word in known or not _NUMBER.fullmatch(word):
        return word in known
    numbers = (other for other in known if _NUMBER.fullmatch(other))
    return any(_round(float(n), word) == word or ("." in n and _round(float(word), n) == n) for n in numbers)


def _same(words: Sequence[str], values: Sequence[float]) -> bool:
    return len(words) == len(values) and all(_round(v, w) == w for w, v in zip(words, values, strict=True))
