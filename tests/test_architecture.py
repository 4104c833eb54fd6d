"""docs/architecture.md names only what exists, and the rooms are as few and as free of loose modules as it says."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
SOURCE = ROOT / "src" / "apd"
MENTIONED = sorted({*re.findall(r"`([^`\n]+)`", PAGE), *re.findall(r"^ {4}(encoder\.\w+)", PAGE, re.MULTILINE)})


@cache
def nodes() -> list[ast.AST]:
    """The syntax of the whole package."""
    return [node for file in SOURCE.rglob("*.py") for node in ast.walk(ast.parse(file.read_text()))]


@cache
def defined() -> set[str]:
    """All names that the package defines: classes, functions, parameters, attributes and assigned names."""
    names: set[str] = set()
    for node in nodes():
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.update((node.asname or node.name).split("."))
    return names


@cache
def members() -> dict[str, set[str]]:
    """What each class of the package defines itself."""
    found: dict[str, set[str]] = {}
    for node in nodes():
        if isinstance(node, ast.ClassDef):
            found.setdefault(node.name, set()).update(
                part.name for part in node.body if isinstance(part, ast.FunctionDef)
            )
    return found


# Words of the page that are commands, arguments or other packages' names.
OTHERS = set(
    [
        "apd",
        "bench",
        "evaluate",
        "make",
        "lint",
        "package",
        "module",
        "name",
        "x",
        "f",
        "run",
        "json",
        "pre_layrnorm",
        "d",
        "n",
    ]
)


@pytest.mark.parametrize("text", MENTIONED)
def test_what_the_page_mentions_exists(text: str) -> None:
    if re.search(r"\.(py|md)$|/$", text):
        places = [SOURCE / text, ROOT / text, ROOT / "docs" / text]
        assert any(place.exists() for place in places), f"there is no {text}"
        return
    unknown = {word for word in re.findall(r"[A-Za-z_]\w*", text) if word not in defined() | OTHERS}
    assert not unknown, f"{sorted(unknown)} in `{text}` is not defined anywhere"
    for owner, member in re.findall(r"\b([A-Z]\w+)\.(\w+)\b", text):
        assert member in members()[owner], f"{owner} does not define {member}"


def test_few_modules_lie_loose() -> None:
    loose = sorted(file.name for file in SOURCE.glob("*.py"))
    assert len(loose) <= 8, loose


def test_every_room_is_on_the_page() -> None:
    rooms = {folder.name for folder in SOURCE.iterdir() if (folder / "__init__.py").is_file()}
    assert rooms and all(f"| `{room}/`" in PAGE for room in rooms), rooms
