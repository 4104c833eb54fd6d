"""The documentation site: its pages, the reference made from the code, and the commands that its pages tell people to type."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

import apd
from apd.cli import app
from apd.models import DualEncoder
from apd.models.classifier import PromptedCLIP

from .command_line import Cli

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    page for page in DOCS.rglob("*") if page.suffix in (".md", ".ipynb") and DOCS / "results" not in page.parents
)
GENERATED = {"charts.md", "commands.md", "settings.md", "changelog.md", "security.md"}
COMMANDS: Any = typer.main.get_command(app)


@pytest.fixture(scope="module")
def reference() -> Iterator[ModuleType]:
    """The module that makes the reference."""
    about = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "docs" / "reference.py")
    assert about is not None and about.loader is not None
    module = importlib.util.module_from_spec(about)
    sys.modules["reference"] = module
    about.loader.exec_module(module)
    yield module
    del sys.modules["reference"]


def in_nav(entry: Any) -> Iterator[str]:
    """The files of a part of the navigation."""
    if isinstance(entry, str):
        yield entry
    else:
        for below in entry.values() if isinstance(entry, dict) else entry:
            yield from in_nav(below)


def test_every_page_is_in_the_navigation_once() -> None:
    listed = list(in_nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(listed) == len(set(listed))
    # A notebook is shown as the page that is made of it.
    assert {str(page.relative_to(DOCS).with_suffix(".md")) for page in PAGES} | GENERATED == set(listed)


@pytest.mark.parametrize("page", [page for page in PAGES if page.suffix == ".md"], ids=lambda page: page.name)
def test_links_lead_somewhere_where_the_pages_are_read_unbuilt(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if ":" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_command_and_option_is_in_the_reference(reference: ModuleType) -> None:
    page = reference.commands_page()
    parts = dict(re.findall(r"^## apd (\S+)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    assert set(parts) == set(COMMANDS.commands)
    for name, command in COMMANDS.commands.items():
        for param in command.params:
            shown = param.opts if param.param_type_name == "option" else [param.metavar or param.name.upper()]
            assert param.name == "help" or all(f"{each}" in parts[name] for each in shown), (name, param.name)


def test_help_has_its_examples_line_by_line_and_no_marks_of_formatting(cli: Cli) -> None:
    for name in COMMANDS.commands:
        text = cli(name, "--help").out
        assert "\\b" not in text and "\b" not in text, name
        examples = re.findall(rf"^\s*apd {name}\b.*$", text, re.MULTILINE)
        assert len(examples) == len(set(examples)) > 0, name


def test_every_setting_is_in_the_reference_with_its_default(reference: ModuleType) -> None:
    from apd.settings.train import TrainSettings

    page = reference.settings_page()
    names = {name.rpartition(".")[2] for name in re.findall(r"^\| `([\w.*]+)` \|", page, re.MULTILINE)}
    for section in reference.sections():
        for name, field in section.model_fields.items():
            inner = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            assert inner or name in names, (section, name)
    assert f"| `train.epochs` | whole number, ≥ 1 | `{TrainSettings().epochs}` |" in page
    assert "| `method.tau` | number, > 0 | `1` |" in page


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_commands_on_a_page_exist_with_these_options(page: Path) -> None:
    for line in re.findall(r"^(?: {4}|)(?:\w+=\S+ )*(apd [a-z].*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        if "`" in line or not re.match(r"apd [a-z]+( |$)", line):
            continue
        _, name, *arguments = shlex.split(line.partition(">")[0].partition(" | ")[0], comments=True)
        assert name in COMMANDS.commands, line
        COMMANDS.commands[name].make_context(name, [each for each in arguments if each != "..."])


def test_attacks_from_elsewhere_run(
    clip: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("foolbox")
    data = apd.load_data(colours, shots=1)
    monkeypatch.setattr(apd, "load_run", lambda run: PromptedCLIP(clip, None, data.class_names))
    monkeypatch.setattr(apd, "load_data", lambda name: data)
    code = re.findall(r"```python\n(.*?)```", (DOCS / "other-attacks.md").read_text(encoding="utf-8"), re.DOTALL)
    exec("\n".join(code), {})
    assert len(re.findall(r": \d+%$", capsys.readouterr().out, re.MULTILINE)) == 2


def test_the_page_of_the_command_line_has_a_row_for_each_command_with_json() -> None:
    rows = set(re.findall(r"^\| `apd (\w+)", (DOCS / "command-line.md").read_text(encoding="utf-8"), re.MULTILINE))
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert rows == {
        name for name, command in commands.items() if any(each.name == "as_json" for each in command.params)
    }
