"""The project speaks plain English: habits of its early docstrings, messages and pages stay out."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("*.md")]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
HABITS = {
    "per, not a": r"\bone an? (sample|image|class|block|run|row|line|step|visit|channel|log entry|folder)\b|images a class\b",
    "is not a": r"(?<![Tt]here )\b(is|are) no (?!longer\b|more\b|less\b)",
    "zero-shot CLIP": r"\bCLIP as (it|they) (is|was|are|were)\b",
    "resume": r"\bgo(es)? on with --resume\b",
    "fix": r"\bmend(s|ed)?\b",
}


@cache
def texts() -> list[tuple[str, str]]:
    """Every line of pages and sources with its place, but for those whose words are part of a hash."""
    return [
        (f"{file.relative_to(ROOT)}:{number}", line)
        for file in [*PAGES, *SOURCES]
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if "# hashed: stays as it is" not in line
    ]


@pytest.mark.parametrize("habit", HABITS)
def test_habit_is_gone(habit: str) -> None:
    found = [f"{place}: {line.strip()}" for place, line in texts() if re.search(HABITS[habit], line)]
    assert not found, "\n".join(found)


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    found = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if re.match(r"(Of|Nothing|The same|Nobody)\b", text):
                    found.append(f"{file.relative_to(ROOT)}: {text.splitlines()[0]}")
    assert not found, "\n".join(found)


def test_arguments_are_described_by_more_than_of_something() -> None:
    entry = re.compile(r"^\s+\w+(, \w+)*: of (the|a|an|its|their|each|all|both) [^.:;]*\.$")
    found = [f"{place}: {line.strip()}" for place, line in texts() if entry.match(line)]
    assert not found, "\n".join(found)


def test_the_first_screen_of_the_readme_holds_install_shell_and_python() -> None:
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    assert "pip install" in screen and len(re.findall(r"^ +apd ", screen, re.MULTILINE)) >= 5
    (code,) = re.findall(r"```python\n(.*?)```", screen, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) >= 6
