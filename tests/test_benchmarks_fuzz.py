"""The fuzzers count what they find: a planted fault, a planted hang and an unclear refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apd.errors import InputError
from benchmarks import fuzz, fuzz_guided
from benchmarks.fuzz_parsers import Parser


def _parser(fault: Callable[[], object]) -> Parser:
    def run(case: bytes) -> object:
        return fault() if case == seventh else case

    parser = Parser("planted", 1, lambda random: random.randbytes(8), run)
    seventh = fuzz._case(parser, 0, 7)
    return parser


def _refuse(text: str) -> object:
    raise InputError(text)


@pytest.mark.parametrize(
    ("fault", "crashes", "hangs", "says"),
    [
        (lambda: 1 / 0, 1, 0, "ZeroDivisionError: division by zero (test_benchmarks_fuzz.py:"),
        (lambda: _refuse("<Dataset object at 0x7f>"), 1, 0, "an unclear refusal"),
        (lambda: _refuse("'7' is not a number: write one below 7"), 0, 0, None),
        (lambda: fuzz.os._exit(3), 1, 0, "the process died (3)"),
        (lambda: fuzz._hang(), 0, 1, "Hang: more than 10 s"),
    ],
)
def test_a_planted_fault_is_counted_and_the_cases_after_it_run(
    fault: Callable[[], object], crashes: int, hangs: int, says: str | None
) -> None:
    row = fuzz._fuzz(_parser(fault), seed=0, cases=20, seconds=60)
    assert (row["crashes"], row["hangs"], row["cases"]) == (crashes, hangs, 20)
    assert row["accepted"] == 19
    assert [(each["case"], says in each["fault"]) for each in row["faults"]] == ([(7, True)] if says else [])


@pytest.mark.slow
def test_guided_fuzzing_reads_what_libfuzzer_counts(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: pip install -e '.[fuzz]'")
    results = tmp_path / "guided.json"
    asked = ["--minutes", "0.05", "--parsers", "class names", "--faults", str(tmp_path), "--results", str(results)]
    assert fuzz_guided.main(asked) == 0
    (row,) = json.loads(results.read_text())["parsers"]
    assert row["cases"] > 100 and row["edges"] > 10 and row["fault"] is None


def test_a_fault_that_libfuzzer_found_names_its_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "cov: 12 ft: 3\n ValueError: odd\nTest unit written to runs/fuzz/x-crash-1\nstat::number_of_executed_units: 42\n"
    done: Any = fuzz_guided.subprocess.CompletedProcess([], 77, "", said)
    monkeypatch.setattr(fuzz_guided.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(fuzz_guided.importlib.util, "find_spec", lambda name: name)
    asked = ["--parsers", "suites", "--faults", str(tmp_path), "--results", str(tmp_path / "r.json")]
    assert fuzz_guided.main(asked) == 1
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["cases"], found["faults"]) == (42, 1)
    assert found["parsers"][0]["fault"]["case"] == "runs/fuzz/x-crash-1" and found["parsers"][0]["edges"] == 12
