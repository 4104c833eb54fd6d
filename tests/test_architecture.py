"""docs/architecture.md names only what exists, and the rooms are as few and as free of loose modules as it says."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

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


def missing(text: str) -> list[str]:
    """What the text names and does not exist."""
    if re.search(r"\.(py|md)$|/$", text):
        places = [SOURCE / text, ROOT / text, ROOT / "docs" / text]
        return [] if any(place.exists() for place in places) else [f"there is no {text}"]
    words = sorted({*re.findall(r"[A-Za-z_]\w*", text)} - defined() - OTHERS)
    return [f"{word} in `{text}` is not defined anywhere" for word in words] + [
        f"{owner} does not define {member}"
        for owner, member in re.findall(r"\b([A-Z]\w+)\.(\w+)\b", text)
        if member not in members().get(owner, ())
    ]


def test_what_the_page_mentions_exists() -> None:
    """In one test: a test of each of the hundreds of names takes a hundred times as long as the look."""
    assert len(MENTIONED) > 100
    found = [fault for text in MENTIONED for fault in missing(text)]
    assert not found, "\n".join(found)
    assert missing("no_such_file.py") and missing("no_such_name") and missing("Cascade.no_such_method")


def test_few_modules_lie_loose() -> None:
    loose = sorted(file.name for file in SOURCE.glob("*.py"))
    assert len(loose) <= 8, loose


def test_every_room_is_on_the_page() -> None:
    rooms = {folder.name for folder in SOURCE.iterdir() if (folder / "__init__.py").is_file()}
    assert rooms and all(f"| `{room}/`" in PAGE for room in rooms), rooms
