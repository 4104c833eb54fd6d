"""The ids of committed results: whoever runs a suite again finds them done."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from apd.bench import load_suite, make_plan
from apd.bench.loaded import dataset
from apd.bench.plan import Plan
from apd.util.trust import ENVIRONMENT

from .suites import Write

ROOT = Path(__file__).resolve().parents[1]


def check(name: str) -> None:
    committed = (ROOT / "docs" / "results" / name / "plan.json").read_text()
    assert make_plan(load_suite(ROOT / "suites" / f"{name}.yaml")).rows == Plan.from_json(committed).rows


def test_the_demo_plans_the_committed_jobs() -> None:
    check("demo")


@pytest.mark.testbed
@pytest.mark.parametrize(
    "name",
    [
        "testbed",
        "ablations",
        "cheap-training",
        "choose",
        "family",
        "few-shot",
        "growth",
        "unlabelled",
        "additions",
        "class-specific",
        "weights",
        "class-specific-family",
    ],
)
def test_suites_of_the_testbed_plan_the_committed_jobs(name: str) -> None:
    check(name)


def test_a_plan_is_written_as_it_always_was() -> None:
    committed = ROOT / "docs" / "results" / "testbed" / "plan.json"
    plan = Plan.from_json(committed.read_text())
    assert plan.rows and plan.to_json() == committed.read_text()


def test_jobs_reach_another_process_unchanged(write: Write) -> None:
    for job in make_plan(load_suite(write())).jobs.values():
        assert pickle.loads(pickle.dumps(job)) == job


@pytest.mark.testbed
def test_few_shot_outcomes_that_two_suites_share_are_parts_of_the_same_evaluations(testbed: Path) -> None:
    """The curve's 200 images at 16 shots are among the 500 of the other suite; caltech101 and digits were attacked anew."""
    plan = make_plan(load_suite(ROOT / "suites" / "few-shot.yaml", root=testbed))
    results, compared = ROOT / "docs" / "results", 0
    for name, job in plan.jobs.items():
        files = [results / suite / "outcomes" / f"{name}.json" for suite in ("few-shot", "class-specific-family")]
        if not all(file.is_file() for file in files) or job.config is None:
            continue
        (few,), views = (json.loads(file.read_text())["views"].values() for file in files)
        (wide,) = (view for view in views if len(view["right"]["clean"]) > 200)
        test = dataset(job.home).test
        ids, of = test.sample(200, 0).ids, test.sample(500, 0).ids
        part = "".join(wide["right"]["worst"][of.index(one)] for one in ids)
        apart = sum(one != other for one, other in zip(part, few["right"]["worst"], strict=True))
        assert apart <= ("caltech101" in job.label), job.label
        compared += 1
    assert compared == 12


OWN = """
from apd.attacks import EvaluationAttack, Found
from apd.methods.adversarial import AdvVLP

class Still(EvaluationAttack):
    name = "still"
    def __call__(self, model, batch, threat, watch=None):
        return Found(batch.x, ["still"] * len(batch))

def doubled(x):
    return 2 * x

TERMS = (("doubled", doubled), ("plain", object()))

class Mine(AdvVLP):
    summary = source = "mine"
    def facts(self):
        return {name: 1 for name, _ in TERMS}

def climbed(logits, labels):
    return -logits.gather(1, labels[:, None]).squeeze(1)
"""


@pytest.mark.parametrize(
    ("old", "new", "again"),
    [
        ("batch.x,", "batch.x.flip(3),", "attacked"),
        ('"mine"', '"ours"', "trained"),
        ("return 2", "return 3", "trained"),
        ("-logits", "-2 * logits", "trained"),
    ],
)
def test_changed_code_of_ones_own_is_not_taken_for_what_was_measured(
    old: str, new: str, again: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name stays, and so did the outcome: the suite said that there was nothing to do."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(ENVIRONMENT, "1")
    methods = {"own": {"name": "own_of_suite:Mine", "train": {"attack": {"loss": "own_of_suite:climbed"}}}}
    blocks = [{"protocol": "few-shot", "data": "colours", "methods": "own"}]
    suite = write(attacks=["own_of_suite:Still"], methods=methods, blocks=blocks)

    def rows() -> dict[str, Any]:
        monkeypatch.delitem(sys.modules, "own_of_suite", raising=False)
        return {row.job: sorted(row.evals) for row in make_plan(load_suite(suite)).rows}

    (tmp_path / "own_of_suite.py").write_text(OWN)
    before = rows()
    assert rows() == before
    (tmp_path / "own_of_suite.py").write_text(OWN.replace(old, new))
    after = rows()
    assert after != before and (list(after) != list(before)) == (again == "trained")
