"""Comparing two checkouts: what differs is reported, and the exit code says so."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

CLI = """
import json, sys
from pathlib import Path

if sys.argv[1] == "list":
    print(json.dumps([{"name": "apd"}, {"name": "pmg"}]))
else:
    output = Path(sys.argv[sys.argv.index("--output") + 1])
    output.mkdir(parents=True)
    method = sys.argv[sys.argv.index("--method") + 1]
    (output / "prompts.safetensors").write_text(PROMPTS.get(method, "same"))
    (output / "config.yaml").write_text("a: 1\\n")
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which then runs its commands without importing torch for them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    checkouts = importlib.import_module("checkouts")
    monkeypatch.setattr(checkouts, "PRELOAD", "")
    monkeypatch.setattr(checkouts, "VARIANTS", {"SAM": "train.optimizer.sam=0.05"})
    monkeypatch.setattr("os.sched_setaffinity", lambda pid, cores: None, raising=False)
    return importlib.import_module("compare_checkouts")


def checkout(folder: Path, prompts: dict[str, str]) -> Path:
    """A source tree whose `apd train` writes these prompts."""
    package = folder / "src" / "apd"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(f"PROMPTS = {prompts!r}\n{CLI}")
    return folder


def test_equal_checkouts_exit_with_0(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = checkout(tmp_path / "old", {}), checkout(tmp_path / "new", {})
    assert script.main([str(old), str(new), "--only", "prompts", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["name"], row["status"]) for row in rows[1:]] == [(n, "equal") for n in ("apd", "pmg", "apd, SAM")]


def test_a_file_that_differs_is_reported_and_exits_with_1(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = checkout(tmp_path / "old", {}), checkout(tmp_path / "new", {"pmg": "other"})
    assert script.main([str(old), str(new), "--only", "prompts", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["equal"]
    assert {row["name"]: row["status"] for row in found["rows"][1:]} == {
        "apd": "equal",
        "pmg": "differs",
        "apd, SAM": "equal",
    }


def test_keep_runs_the_old_checkout_once(script: ModuleType, tmp_path: Path) -> None:
    old, new, keep = checkout(tmp_path / "old", {}), checkout(tmp_path / "new", {}), tmp_path / "keep"
    argv = [str(old), str(new), "--only", "prompts", "--keep", str(keep)]
    assert script.main(argv) == 0
    (prompts,) = keep.glob("*/runs/pmg/prompts.safetensors")
    prompts.write_text("from the first comparison")
    assert script.main(argv) == 1


def test_a_command_that_fails_is_not_equal(script: ModuleType, tmp_path: Path) -> None:
    old, new = checkout(tmp_path / "old", {}), checkout(tmp_path / "new", {})
    for tree in (old, new):
        main = tree / "src" / "apd" / "__main__.py"
        main.write_text(
            main.read_text().replace("output.mkdir", "sys.exit('stop') if method == 'pmg' else output.mkdir")
        )
    assert script.main([str(old), str(new), "--only", "prompts"]) == 1


@pytest.mark.parametrize("section", ["plans", "prompts"])
def test_a_checkout_that_does_not_start_is_not_equal(script: ModuleType, tmp_path: Path, section: str) -> None:
    old, new = checkout(tmp_path / "old", {}), checkout(tmp_path / "new", {})
    (new / "src" / "apd" / "__init__.py").write_text("raise ImportError")
    assert script.main([str(old), str(new), "--only", section]) == 1


def test_plans_are_compared_line_by_line(script: ModuleType, tmp_path: Path) -> None:
    line = {"method": "apd", "shots": 4, "seed": 0, "job": "j1", "views": {"v1": {"limit": 5}}, "final": {}}
    file = tmp_path / "docs" / "results" / "quick" / "plan.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"entries": [{**line, "final": {"v2": {}}}]}))
    same = {"rows": [line], "skipped": {}}
    other = {"rows": [{**line, "job": "j2"}], "skipped": {}}
    unread = {"rows": [], "skipped": {"apd": "no model"}}
    cases = {"equal": (same, same), "differs": (same, other), "skipped": (unread, unread)}
    assert {status: script.compare_plan("quick", tmp_path, *sides).status for status, sides in cases.items()} == {
        status: status for status in cases
    }
    assert script.compare_plan("quick", tmp_path, same, unread).status == "differs"


def test_values_that_differ_are_named_but_not_times(script: ModuleType) -> None:
    old = {"clean": 50.0, "attacks": {"pgd": {"accuracy": 10.0, "seconds": 1.0}}, "n": 1}
    new = {"clean": 50.0, "attacks": {"pgd": {"accuracy": 20.0, "seconds": 2.0}}, "m": 1}
    found = script.difference(old, new)
    assert [line.partition(":")[0] for line in found] == ["attacks.pgd.accuracy", "m", "n"]
    assert script.difference(old, {**old, "seconds": 3.0}) == []


def test_an_added_key_is_told_but_a_lost_one_differs(script: ModuleType) -> None:
    old = {"checks": [{"name": "a", "value": 2}]}
    few, more = (
        {"out": json.dumps(value)}
        for value in (old, {"checks": [{"name": "b", "value": 1}, *old["checks"]], "limit": 2})
    )
    added, lost = (script.verdict("evaluation", "apd", script.answered(*pair)) for pair in ((few, more), (more, few)))
    assert (added.status, lost.status) == ("equal", "differs")
    assert "limit" in added.detail and "checks.b" in added.detail


def test_outcomes_are_read_by_sample_from_either_format(script: ModuleType, tmp_path: Path) -> None:
    rows = [{"circumstances": {}}, {"id": "a", "predicted": 1}, {"seconds": 1.0}, {"id": "b", "predicted": 2}]
    file = tmp_path / "results" / "clean-0.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert script.outcomes(tmp_path) == {"clean-0.jsonl": {"a": rows[1], "b": rows[3]}}


def test_outcomes_written_again_are_named(script: ModuleType, tmp_path: Path) -> None:
    kept, other = tmp_path / "kept.jsonl", tmp_path / "other.jsonl"
    kept.write_text("1\n")
    before = script.snapshot(tmp_path)
    assert script.changed(before, tmp_path) == []
    other.write_text("2\n")
    assert len(script.changed(before, tmp_path)) == 1
    assert script.changed(before, tmp_path, more=True) == []
    kept.write_text("3\n")
    assert len(script.changed(before, tmp_path, more=True)) == 1


@pytest.mark.parametrize("argv", [["--only", "plan"], ["--only", ""]])
def test_unknown_sections_are_refused(script: ModuleType, tmp_path: Path, argv: list[str]) -> None:
    tree = checkout(tmp_path / "tree", {})
    with pytest.raises(SystemExit) as end:
        script.main([str(tree), str(tree), *argv])
    assert end.value.code == 2
