"""Anything that is JSON or text, as hypothesis makes it: shown safely, read, or refused by an error of ours."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apd.bench.job import read_outcome
from apd.bench.plan import Plan
from apd.data.splits import check_names
from apd.errors import ApdError, InputError
from apd.models.prompts import PromptSpec
from apd.runs.config import validate
from apd.runs.folder import Run
from apd.util.text import cell, code_span, markdown, one_line, printable
from apd.util.trust import is_spec, note_code, refusal

QUICK = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TEXTS = st.text(st.characters(), max_size=60)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@QUICK
@given(TEXTS)
def test_any_name_is_shown_on_one_line_without_what_means_something(name: str) -> None:
    for shown in (
        printable(name),
        markdown(name),
        one_line(name),
        code_span(name),
        str(cell(name)),
        str(InputError(name)),
    ):
        assert "\n" not in shown and "\r" not in shown and "\x1b" not in shown and "\u202e" not in shown
    assert "<" not in markdown(name) and "![" not in markdown(name)
    try:
        check_names((name, "another"), "here")
    except InputError as refused:
        assert "\n" not in str(refused)


@QUICK
@given(
    st.sampled_from(
        ["model", "class_names", "templates", "prompts", "calibration", "summary", "status", "format", "data"]
    ),
    JSON,
)
def test_any_value_in_a_manifest_is_read_or_refused(run: Path, key: str, value: Any) -> None:
    file = run / "run.json"
    whole = file.read_text()
    file.write_text(json.dumps({**json.loads(whole), key: value}))
    try:
        found = Run.open(run, finished=False)
        assert isinstance(repr(found), str) and (found.calibration is None or found.calibration.temperature > 0)
        PromptSpec.recorded(found.manifest["prompts"], "run.json")
    except ApdError:
        pass
    finally:
        file.write_text(whole)


@QUICK
@given(JSON)
def test_any_json_is_a_plan_an_outcome_or_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "outcomes").mkdir(exist_ok=True)
    (tmp_path / "outcomes" / "j.json").write_text(json.dumps(value))
    with pytest.raises(ApdError):
        read_outcome(tmp_path, "j")
    with pytest.raises(ApdError):
        Plan.from_json(json.dumps(value))


@QUICK
@given(st.sampled_from(["model", "data", "method", "train"]), JSON)
def test_any_settings_are_read_or_refused(section: str, value: Any) -> None:
    try:
        validate({"data": {"source": "digits"}, section: value})
    except ApdError as refused:
        assert str(refused)


@QUICK
@given(
    st.text(string.ascii_letters + "_", min_size=1, max_size=9), st.text(string.ascii_letters, min_size=1, max_size=9)
)
def test_any_name_of_code_in_a_file_is_known_as_one(module: str, name: str) -> None:
    spec = f"hypothesis_{module}:{name}"
    assert is_spec(spec)
    note_code({"a": [f"{spec}+tower.pt", 1]}, "theirs.json")
    assert "theirs.json" in str(refusal(spec))
