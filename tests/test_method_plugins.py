"""Methods of other packages: a real little one, and broken ones."""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from apd.cli.listing import listing
from apd.methods import METHODS, find_method
from apd.runs.config import load_config
from apd.util import plugins
from apd.util.messages import command_line

from .command_line import Cli
from .forked import Forked, command
from .refusals import meant, refused

pytestmark = pytest.mark.usefixtures("short_checks")

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "method-plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, installed by pip into a folder of its own."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(EXAMPLE, folder / "source")
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    install = [sys.executable, "-m", "pip", "install", *flags, "--target", str(folder / "site"), str(source)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_an_installed_package_s_method_is_listed_trains_and_is_evaluated(
    cli: Cli, installed: Path, tmp_path: Path, shallow_folder: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "apd_mart", raising=False)  # that of the example's own test
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(installed)
        listed = cli("list", "methods", "--json")
        assert listed.code == 0, listed.err
        rows = {row["name"]: row for row in json.loads(listed.out)}
        assert rows.keys() == {*METHODS, "mart"}
        assert rows["mart"]["module"] == "apd_mart"
        beta = {"default": 6.0, "description": "weight of the consistency term"}
        assert rows["mart"]["settings"]["method.beta"] == beta

        options = ("--model", shallow_folder, "--shots", 2, "--epochs", 1, "--device", "cpu", "--set", "method.beta=2")
        trained = cli("train", colours, *options, "--method", "mart", "--output", tmp_path / "run")
        assert trained.code == 0, trained.err
        evaluated = cli("evaluate", tmp_path / "run", "--attack", "pgd-1", "--limit", 3, "--json")
        assert evaluated.code == 0, evaluated.err
        assert json.loads(evaluated.out)["n"] == 3
    module = sys.modules.pop("apd_mart")
    assert Path(str(module.__file__)).parent == installed

    card = (tmp_path / "run" / "README.md").read_text()
    assert "mart" not in cli("list", "methods").out
    again = Forked(command, "evaluate", tmp_path / "run", "--attack", "pgd-1", "--limit", 3, "--json")
    assert json.load(again.output)["clean"] == json.loads(evaluated.out)["clean"]
    assert again.wait() == 0
    assert "beta: 2.0" in card and (tmp_path / "run" / "README.md").read_text() == card, (
        "with the method's own settings"
    )
    training = cli("train", "--config", tmp_path / "run" / "config.yaml", "--output", tmp_path / "other")
    assert training.code == 2 and "No method 'mart'" in training.err


def test_packages_are_looked_up_once_and_again_after_an_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = []
    monkeypatch.setattr(plugins, "entry_points", lambda group: looked_up.append(group) or entry_points(group=group))
    monkeypatch.syspath_prepend(tmp_path)
    assert not METHODS.knows("late") and not METHODS.knows("later") and len(looked_up) == 1
    about = tmp_path / "late-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: late\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[apd.methods]\nlate = somewhere:Late\n")
    assert METHODS.knows("late") and METHODS.package("late") == "late" and len(looked_up) == 2


@pytest.mark.usefixtures("broken_methods")
def test_broken_methods_are_told_of_and_leave_the_rest_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert find_method("apd") is METHODS["apd"] and "wordless" not in sys.modules, "nothing is imported unasked"
    found, problems = METHODS.listing()
    assert found.keys() == {*METHODS, "good", "plain"} and find_method("good") is found["good"]
    assert len(problems) == 5 and all("others" in problem and "\n" not in problem for problem in problems)
    for name, reason in {
        "lost": "No module named 'no_such_module'",
        "odd": "apd.methods.Method",
        "wordless": "loss()",
        "lossless": "loss()",
    }.items():
        with refused(name, "others", reason):
            find_method(name)
    with command_line():
        listing("methods")
    shown = capsys.readouterr()
    assert "a good one (package others)\n" in shown.out and "lost" not in shown.out
    assert shown.out.count("(package ") == 2, "those of this package are not marked"
    assert len([line for line in shown.err.splitlines() if "of the package others" in line]) == 5
    with refused("goood", meant("good")):
        find_method("goood")
    with refused("--method", "lost", "others", "no_such_module"):
        load_config(flags={"data.source": "digits", "method.name": "lost"})
    with refused("--set method.prompt=1", meant("method.prompts")):
        load_config(flags={"data.source": "digits", "method.name": "good"}, sets=["method.prompt=1"])


def test_json_tells_what_each_method_is(capsys: pytest.CaptureFixture[str]) -> None:
    listing("methods", as_json=True)
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(METHODS)
    about = {row["name"]: row for row in rows}
    assert all(row["description"] and row["source"] for row in rows)
    assert about["zero-shot"]["trains"] == "nothing" and not about["zero-shot"]["adversarial"]
    assert about["maple"]["trains"] == (
        "2 text tokens at depth all; 2 visual tokens at depth all, mapped from the text ones"
    )
    assert about["coop"]["settings"]["method.prompts.text_depth"]["default"] == 1
    assert about["apt"]["published"]["train.eps"] == "4/255" and about["trades"]["published"] == {}
    assert all(entry["description"] for row in rows for entry in row["settings"].values())


def test_the_page_on_methods_is_of_these_methods_and_this_example() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 6]
    assert rows.pop(0).startswith("| `--method`")
    assert {row.split("`")[1] for row in rows} == set(METHODS)
    commands = [line.split("`")[1] for line in page.splitlines() if line.startswith("| ") and "--method " in line]
    commands += [line for line in page.splitlines() if line.startswith("    apd train") and "mart" not in line]
    for words in map(shlex.split, commands[1:]):
        sets = [after for before, after in itertools.pairwise(words) if before == "--set"]
        name = words[words.index("--method") + 1]
        assert load_config(flags={"data.source": "digits", "method.name": name}, sets=sets).method.name == name
    assert len(commands) >= 7
    assert len((EXAMPLE / "apd_mart.py").read_text().splitlines()) <= 60, "the example is short"
    for name in ("apd_mart.py", "test_apd_mart.py", "pyproject.toml"):
        assert (EXAMPLE / name).read_text().strip() in page, f"docs/methods.md does not show {name} as it is"
