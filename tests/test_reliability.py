"""Whether a result can be trusted, wherever it is shown: result, JSON, card, report, comparison, tables, exit code."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apd.bench.job import EvalOutcome
from apd.bench.protocols import Metric
from apd.bench.report.tables import Table, latex, markdown
from apd.cli.evaluate import UNRELIABLE
from apd.evaluation import evaluate_tensors, parse_settings
from apd.evaluation.compare import compare_runs
from apd.evaluation.result import Check
from apd.report.words import verdict
from apd.runs.folder import Run
from apd.runs.reliability import BECAUSE, reliability

from .command_line import Cli
from .toys import decoded, trained


def check(name: str, passed: bool | None, **more: Any) -> dict[str, Any]:
    return {"name": name, "passed": passed, "value": 1.0, "message": f"about {name}", **more}


@pytest.mark.parametrize(
    ("checks", "reliable", "because"),
    [
        ([], None, 0),
        ([check("undefended", None)], None, 0),
        ([check("eps 0", True), check("undefended", None)], True, 0),
        ([check("eps 0", True), check("huge eps", False), check("random noise", False)], False, 2),
        ([check("eps 0", True), check("collapse", False, warns=True)], True, 0),
        ([check("autoattack: randomized", False), check("a check of tomorrow", False)], False, 2),
    ],
)
def test_what_fails_a_result(checks: list[dict[str, Any]], reliable: bool | None, because: int) -> None:
    found = reliability({"checks": checks})
    assert (found.reliable, len(found.because)) == (reliable, because)
    assert len(found.warnings) == sum(bool(one.get("warns")) for one in checks)
    assert found.describe().partition(",")[0] == {True: "yes", False: "no", None: "unknown"}[reliable]
    assert verdict({"checks": checks})["reliable"] is reliable


def test_a_result_of_an_older_version_has_a_verdict_too() -> None:
    assert reliability({}).reliable is None
    assert reliability({"checks": [check("stronger attack", False)]}).reliable is False


def test_headline_and_json_say_whether_and_why() -> None:
    values: dict[str, Any] = {"attacks": ("pgd-1",), "eps": 0.06, "batch_size": 60}
    weak = evaluate_tensors(trained(5), decoded(60, 5), tuple("abcde"), parse_settings(values))
    assert weak.reliable is False and not weak.sound
    found = json.loads(weak.to_json())
    assert found["reliable"] is False and found["unreliable_because"] == list(weak.unreliable_because)
    assert (
        "(stronger attack)" in weak.unreliable_because[0] and BECAUSE["stronger attack"] in weak.unreliable_because[0]
    )
    assert str(weak).splitlines()[1].startswith("reliable: no, because") and "reliable: no" in weak._repr_html_()
    unchecked = weak.model_copy(update={"checks": []})
    assert unchecked.reliable is None and unchecked.sound and not unchecked.to_dict()["unreliable_because"]
    warned = weak.model_copy(update={"checks": [Check(name="x", passed=False, value=0, message="m", warns=True)]})
    assert warned.reliable is True and "WARN x: m" in str(warned) and "FAIL" not in str(warned)


def spoil(run: Path) -> None:
    """Let the evaluation that a run keeps have failed a check."""
    (file,) = (run / "results").glob("summary-*.json")
    summary = json.loads(file.read_text())
    summary["checks"].append(check("huge eps", False))
    Run.open(run).save_result({**summary, "reliable": False})


def test_card_comparison_and_report_say_it(cli: Cli, run: Path, tmp_path: Path) -> None:
    assert cli("evaluate", run, "--attack", "pgd-1", "--limit", 4, "--json").code == 0
    other = shutil.copytree(run, tmp_path / "other")
    spoil(other)
    assert "Reliable: no" in (other / "README.md").read_text()
    (found,) = compare_runs([run, other])
    assert {row.reliable_b for row in found.rows} == {False} and found.unreliable[-1].startswith("B (")
    assert "†" in cli("compare", run, other).out
    page = tmp_path / "page.html"
    assert cli("report", other, "--output", page).code == 0
    assert "Reliable: no" in page.read_text()


def test_strict_exits_with_three(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apd.evaluation import summary

    arguments = ("evaluate", run, "--attack", "pgd-1", "--limit", 4)
    found = [Check(name="huge eps", passed=True, value=0, message="fine")]
    monkeypatch.setattr(summary, "_checks", lambda *_: found)
    assert cli(*arguments, "--strict").code == 0
    found[0] = found[0].model_copy(update={"passed": False})
    assert cli(*arguments).code == 0
    answer = cli(*arguments, "--strict", "--json")
    assert answer.code == UNRELIABLE == 3
    assert json.loads(answer.out)["reliable"] is False
    found.clear()  # nobody has looked, which is no reason to go on
    answer = cli(*arguments, "--strict", "--json")
    assert answer.code == UNRELIABLE and json.loads(answer.out)["reliable"] is None


def test_tables_mark_what_is_not_reliable() -> None:
    good = EvalOutcome("same", {"clean": "11", "worst": "10"}, 1.0, reliable=True)
    bad = replace(good, reliable=False, because=("it lies (huge eps)",))
    metrics = (Metric("clean", (("test", "clean"),)), Metric("worst", (("test", "worst"),), main=True))
    rows = {"honest": ({0: {"test": good}},), "fake": ({0: {"test": bad}},)}
    table = Table("few-shot", "data", "note", metrics, rows)
    text = markdown("suite", [table])
    assert "| fake | 1 | **100.0** | **50.0†** |" in text and "| honest | 1 | **100.0** | **50.0** |" in text
    assert "it lies (huge eps)" in text and r"$^\dagger$" in latex([table])
