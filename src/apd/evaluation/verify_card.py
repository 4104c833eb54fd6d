"""Whether a model card states what the run's files give.

Facts are compared, not words, so that a card keeps its truth when a later version words it otherwise: settings, accuracies with
what they are of, verdicts, and the numbers among the circumstances. A reader must see them: what a comment hides is not stated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from apd.attacks.threat import format_eps
from apd.errors import InputError
from apd.evaluation.card_text import LARGEST_CARD, CardText, Fence, Row, Section, parse_card, plain, split_lines, words
from apd.methods import METHODS
from apd.runs.card import render_card
from apd.runs.folder import Run
from apd.runs.manifest import read_result
from apd.runs.output import summary_files
from apd.runs.reliability import reliability
from apd.util.files import read_bounded
from apd.util.text import markdown, one_line
from apd.util.yaml_files import parse_yaml, read_yaml

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_PERCENT = re.compile(r"(?<!\d)(?<!\d[.,])(-?\d+(?:[.,]\d+)*)\s*(?:%|per\s?cent\b)")
_BUDGET = re.compile(r"(?<![\w/])(?<!\d\.)(\d+/\d+|\d+(?:\.\d+)?\s?/\s?255)(?![\w/])")
_IMAGES = re.compile(r"(?<!\d)(?<!\d[.,])(\d+(?:,\d+)*)(?:\sof\s(\d+(?:,\d+)*))?(?:\s[^\W\d]\w*){0,2}\simages")
_FIGURE = re.compile("|".join(each.pattern for each in (_PERCENT, _BUDGET, _IMAGES)))
"""In text: percentages, budgets and numbers of images. Each number is looked at from its first digit only."""
_CODE_PERCENT = re.compile(rf"(?<![\w.]){_PERCENT.pattern}(?!\s*[\w(])")
"""In code, where a value may follow the sign for the rest of a division."""
_TOKEN = re.compile(r"[^\W\d]+|\d*\.\d+|\d+|[=.,;()\n]")
_ACCURACY = {"accuracy", "accuracies", "acc", "accurate", "robust", "robustness", "autoattack", "pgd", "apgd", "clean"}
_BETWEEN = {"of", "is", "was", "are", "be", "about", "around", "only", "reaches", "reached", "equals", "=", "(", "\n"}
"""What may stand between a word for an accuracy and its number."""
_VERDICT = re.compile(r"reliable\W+(yes|no|unknown)\b", re.IGNORECASE)
_LONGEST_NUMBER = 30
"""Characters of a number that is compared as one."""
_MOST_NUMBERS = 50
"""In a row that is read as one of an evaluation."""
_MOST_BLOCKS = 10
"""Of settings in other words that are parsed."""
_ORDINARY = {"95", "100"}
"""Numbers that any wording may have: of a 95 % interval, of a whole."""
_WORDED = ("probabilities", "training images", "validation images", "unlabelled images")
"""Circumstances whose rows hold words instead of values."""
_CODE = {"python", "py", "pycon", "bash", "sh", "shell", "console", "zsh", "yaml"}
"""Languages of blocks that hold settings or commands."""
_MANY_CELLS = 4
"""A row of more cells says by itself which evaluation it is of; one of fewer belongs to the text above it."""

_Accuracy = tuple[float, float, float]


class _Known:
    """Words that a card may have, numbers among them with more or fewer decimals."""

    def __init__(self, known: Iterable[str]) -> None:
        self._words = {*known}
        self._numbers = [*filter(_comparable, self._words)]
        self._rounded = dict[int, set[str]]()
        self._exact = {
            decimals: {n for n in self._numbers if _decimals(n) == decimals}
            for decimals in map(_decimals, self._numbers)
        }

    def __contains__(self, word: str) -> bool:
        return self.rounds(word) or (
            _comparable(word)
            and any(_round(float(word), f".{'0' * n}") in same for n, same in self._exact.items() if n)
        )

    def rounds(self, word: str) -> bool:
        """Whether a word is known, or a number that is one of these with its own number of decimals."""
        if word in self._words or not _comparable(word):
            return word in self._words
        decimals = _decimals(word)
        if decimals not in self._rounded:
            self._rounded[decimals] = {_round(float(number), word) for number in self._numbers}
        return word in self._rounded[decimals]

    def figure(self, text: str) -> bool:
        """Whether a number in a text is known; it may have commas, or be a part of one instead of a percentage."""
        number = re.sub(r"\s", "", text).rstrip(".,")
        if re.fullmatch(r"\d{1,3}(?:,\d{3})+", number):
            number = number.replace(",", "")
        number = number.replace(",", ".")
        return number in self

    def share(self, text: str) -> bool:
        """Whether a decimal is known, or is a known percentage of 1."""
        number = f"0{text}" if text.startswith(".") else text
        percent = _round(100 * float(number), "." + "0" * (_decimals(number) - 2))
        return self.rounds(number) or (float(number) <= 1 and self.rounds(percent))


@dataclass(frozen=True)
class _Fact:
    """One accuracy of an evaluation: under ``clean``, an attack, or ``worst`` of several."""

    name: str
    own: _Accuracy
    base: _Accuracy | None


class _Line:
    """A row of a table, with its words taken apart once."""

    def __init__(self, row: Row) -> None:
        self.row, self.many = row, len(row.cells) > _MANY_CELLS
        zero = next((i for i, head in enumerate(row.heads) if "zero-shot" in head.lower()), None)
        parts = [words(cell) for i, cell in enumerate(row.cells) if i != zero] or [[]]
        self.last, self.words = {*parts[-1]}, {word for part in parts for word in part}
        self.numbers = [word for part in parts for word in part if _NUMBER.fullmatch(word)]
        self.digits = {word for word in self.words if any(map(str.isdigit, word))}
        control = words(row.cells[zero]) if zero is not None and zero < len(row.cells) else []
        self.control = [word for word in control if any(map(str.isdigit, word))]


class _Stated:
    """What one evaluation gives a card to state."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        base = result.get("undefended") or {}
        own, control = _scores(result), _scores(base) if base else {}
        self.facts = [_Fact(name, accuracy, control.get(name)) for name, accuracy in own.items()]
        self.attacks = set(_said(" ".join(result["attacks"])))
        data = f"{result['data']} {result.get('corruption') or ''}"
        self.where = {*_said(data), *_said(f"{result['norm']} {result['eps_text']}")}
        self.n = str(result["n"])
        sampled = str(result.get("n_available", result["n"]))
        self.about = {*self.where, self.n, sampled, str(result["seed"]), str(result.get("split", "test"))}
        self.verdict = reliability(result).word
        self.failed = [check["name"] for check in result.get("checks", ()) if check["passed"] is False]

    def states(self, line: _Line, fact: _Fact) -> bool:
        """Whether a row of a table states this accuracy, and nothing else."""
        numbers = line.numbers
        if len(numbers) > _MOST_NUMBERS or not any(
            _same(numbers[i : i + 3], fact.own) for i in range(len(numbers) - 2)
        ):
            return False
        needed = {*_said(fact.name)} | (self.where | {self.n} if line.many else set())
        name = {"worst", *self.attacks} if fact.name == "worst" else {*_said(fact.name)}
        allowed = self.about | name | {_round(value, word) for word in numbers for value in fact.own}
        names = line.digits | (line.words & {"clean", "worst", *self.attacks})
        if line.control and not (fact.base and _same(line.control, fact.base)):
            return False
        verdicts = line.last & {"yes", "no", "unknown"}
        return needed <= line.words and names <= allowed and verdicts <= {self.verdict}


def check_card(run: Run) -> str | None:
    """Say what the model card of a run states that its files do not give; None where all of it is true.

    Raises:
        InputError: a file that cannot be read.
    """
    results = [read_result(each) for each in summary_files(run.results)]
    problem = _first_problem(run, results)
    if problem is None or all(result["norm"] == "linf" for result in results):
        return problem
    older = [{**each, "eps_text": format_eps(each["eps"])} for each in results]  # as cards had them in all norms
    return problem if _first_problem(run, older) else None


def _first_problem(run: Run, results: Sequence[Mapping[str, Any]]) -> str | None:
    """Say what the card states that these results and the run's other files do not give."""
    text = read_bounded(run.path / "README.md", "evaluate again", LARGEST_CARD).decode("utf-8-sig", errors="replace")
    settings = read_yaml(run.path / "config.yaml")
    try:
        written = render_card(run.path, run.manifest, run.config, results)
        given, stated = parse_card(written, split_lines(written)), [_Stated(result) for result in results]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        raise InputError(f"no model card can be made of the run's files ({one_line(error, 100)})") from error
    card = parse_card(text, split_lines(written))
    problems = chain(_header_problems(card, given, run), _problems(card, given, settings, stated))
    return next(problems, None)


def _problems(card: CardText, given: CardText, settings: object, stated: Sequence[_Stated]) -> Iterator[str]:
    known = _Known(given.words() | _ORDINARY)
    if card.html:
        yield f"it holds HTML, {one_line(card.html[0], 60)}, which a reader sees in another way"
    yield from _fence_problems(card, given, settings, known)
    yield from _circumstance_problems(card, given, known)
    found = set[tuple[int, str]]()
    for section in card.sections:
        lines = [_Line(row) for row in section.rows if len(row.cells) > 2 and any(map(_has_digit, row.cells))]
        given_by = [
            {(i, fact.name) for i, each in enumerate(stated) for fact in each.facts if each.states(line, fact)}
            for line in lines
        ]
        own = [each for i, each in enumerate(stated) if all(any(i == j for j, _ in facts) for facts in given_by)]
        if any(not line.many for line in lines):
            yield from _section_problems(section, own)
        elif "yes" in _verdicts(section) and not any(each.verdict == "yes" for each in stated):
            yield "it is called reliable: yes"
        for line, facts in zip(lines, given_by, strict=True):
            if not facts:
                yield f"no result gives {one_line(line.row, 100)}"
            found.update(facts if line.many and line.row.heads else ())
        yield from _prose_problems(section, known)
    for i, each in enumerate(stated):
        for fact in each.facts:
            if (i, fact.name) not in found:
                yield f"it lacks {fact.own[0]:.1f} % ({fact.name}, {one_line(' '.join(sorted(each.where)), 60)})"


def _header_problems(card: CardText, given: CardText, run: Run) -> Iterator[str]:
    model, tags, known = card.header.get("base_model"), card.header.get("tags"), _Known(given.words() | _ORDINARY)
    if model is not None and model != run.manifest["model"]["source"]:
        yield f"its base_model is {one_line(model, 60)}"
    named = {tag for tag in (tags if isinstance(tags, list) else ()) if isinstance(tag, str)} & {*METHODS}
    if named and run.config.method.name not in named:
        yield "its tags name another method"
    for value in _values(card.header):
        number = str(value).strip()
        if (not isinstance(value, str) or re.fullmatch(r"\d*\.\d+", number)) and number not in known:
            yield f"its header holds the figure {one_line(number, 60)}"
        if wrong := next(_wrong_figures(number, known), None):
            yield f"its header holds {wrong}"


def _fence_problems(card: CardText, given: CardText, settings: object, known: _Known) -> Iterator[str]:
    """Say which blocks of code hold other settings, or figures that are not the run's."""
    true = {"\n".join(block.lines) for block in given.fences}
    compared, longest = 0, 10 * max(map(len, true), default=0)
    for block in card.fences:
        text = "\n".join(block.lines)
        if text in true:
            continue
        if block.language == "yaml":
            compared += 1
            found = parse_yaml(text, "README.md") if compared <= _MOST_BLOCKS and len(text) <= longest else None
            if found != settings and not any(found == each for each in _settings(given)):
                yield "its settings are not those of config.yaml"
        wrong = _wrong_in_code(block, known) if block.language in _CODE else _wrong_in_block(block, known)
        yield from (f"no result gives {each}, in a block of code" for each in wrong)


def _settings(given: CardText) -> Iterator[object]:
    return (parse_yaml("\n".join(block.lines), "config.yaml") for block in given.fences if block.language == "yaml")


def _wrong_in_code(block: Fence, known: _Known) -> Iterator[str]:
    for line in block.lines:
        for found in _CODE_PERCENT.finditer(line):
            if not known.figure(found[1]):
                yield one_line(found[0], 60)
        comment = line.partition("#")[2]
        yield from (one_line(found[0], 60) for found in _PERCENT.finditer(comment) if not known.figure(found[1]))
        yield from _wrong_accuracies(comment, known)


def _wrong_in_block(block: Fence, known: _Known) -> Iterator[str]:
    yield from _wrong_figures("\n".join(block.lines), known)
    for line in block.lines:
        yield from _wrong_decimals(line if "|" in line else "", known)


def _circumstance_problems(card: CardText, given: CardText, known: _Known) -> Iterator[str]:
    """Say which circumstances are others than those of the run; one under another label must still be of the run."""
    pairs = (row.cells for each in given.sections for row in each.rows if len(row.cells) == 2)
    own = {cells[0]: (words(cells[1]), _Known(words(cells[1]))) for cells in pairs}
    for row in (row for each in card.sections for row in each.rows if len(row.cells) <= 2):
        label, value = row.cells[0], row.cells[-1]
        given_words, allowed = own.get(label, ([], known)) if len(row.cells) == 2 else ([], known)
        if label not in own and (odd := next(chain(_wrong_figures(label, known), _wrong_decimals(label, known)), None)):
            yield f"no result gives {odd}, in the row {one_line(row, 60)}"
        stated = words(value) if len(row.cells) == 2 else []
        wrong = [word for word in stated if _has_digit(word) and word not in allowed]
        if label not in _WORDED:
            rest = iter(stated)  # in this order: that of the classes is one of the facts
            wrong += [word for word in given_words if not _has_digit(word) and word not in rest]
        if wrong:
            yield f"{one_line(label, 40)} is stated as {one_line(value, 60)}"


def _section_problems(section: Section, own: Sequence[_Stated]) -> Iterator[str]:
    """Say what is wrong with a short table: its rows are of one evaluation, which the text around it names and judges."""
    if not own:
        yield "the figures of a table are not those of one evaluation"
        return
    said = [word for text in section.prose for word in words(text)]
    named = [each for each in own if each.where | {each.n} <= {*said}]
    if not named:
        yield "the text with a table does not name the evaluation that it is of"
    verdicts = _verdicts(section)
    if named and verdicts and not any({each.verdict} == verdicts for each in named):
        yield f"it is called reliable: {', '.join(sorted(verdicts))}"
    text = " ".join(said)
    if named and verdicts and not any(all(" ".join(_said(name)) in text for name in each.failed) for each in named):
        yield "it does not name the health checks that failed"


def _verdicts(section: Section) -> set[str]:
    rows = (str(row) for row in section.rows if len(row.cells) <= 2)
    return {verdict.lower() for text in (section.heading, *section.prose, *rows) for verdict in _VERDICT.findall(text)}


def _prose_problems(section: Section, known: _Known) -> Iterator[str]:
    for text in (section.heading, *section.prose, *section.heads):
        yield from (f"no result gives {each}" for each in _wrong_figures(text, known))
    for head in section.heads:
        yield from (f"no result gives {each}, in the head of a table" for each in _wrong_decimals(head, known))


def _wrong_figures(text: str, known: _Known) -> Iterator[str]:
    """Percentages, budgets, numbers of images and accuracies in a text that are not the run's."""
    shown = re.sub("[*`]", "", plain(text))
    for found in _FIGURE.finditer(shown):
        if not all(known.figure(figure) for figure in found.groups() if figure is not None):
            yield one_line(found[0], 60)
    yield from _wrong_accuracies(shown, known)


def _wrong_accuracies(text: str, known: _Known) -> Iterator[str]:
    """Decimals beside a word for an accuracy, such as 0.987, that the run does not give."""
    tokens = [token.lower() for token in _TOKEN.findall(text)]
    for i, token in enumerate(tokens):
        if "." not in token[:-1] or (float(token) <= 1 and len(token.partition(".")[2]) < 2):
            continue
        before = next((word for word in reversed(tokens[max(0, i - 4) : i]) if word not in _BETWEEN), "")
        if {before, *tokens[i + 1 : i + 2]} & _ACCURACY and not known.share(token):
            yield f"an accuracy of {one_line(token, 60)}"


def _wrong_decimals(text: str, known: _Known) -> Iterator[str]:
    for word in words(text):
        if "." in word and _NUMBER.fullmatch(word) and word not in known:
            yield one_line(word, 60)


def _has_digit(text: str) -> bool:
    return any(map(str.isdigit, plain(text)))


def _values(value: object) -> Iterator[int | float | str]:
    """Yield all numbers and texts in a value of YAML, whose parts may hold each other."""
    open_, seen = [value], set[int]()
    while open_:
        each = open_.pop()
        if isinstance(each, int | float | str) and not isinstance(each, bool):
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


def _said(text: str) -> list[str]:
    """Words of a text from a file as a card has them."""
    return words(markdown(text))


def _comparable(word: str) -> bool:
    return len(word) <= _LONGEST_NUMBER and _NUMBER.fullmatch(word) is not None


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


def _same(found: Sequence[str], values: Sequence[float]) -> bool:
    return len(found) == len(values) and all(_round(v, w) == w for w, v in zip(found, values, strict=True))
