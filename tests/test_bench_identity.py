"""The ids of committed results: whoever runs a suite again finds them done."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from apd.bench import load_suite, make_plan
from apd.bench.plan import Plan

from .suites import Write

ROOT = Path(__file__).resolve().parents[1]


def check(name: str) -> None:
    committed = (ROOT / "docs" / "results" / name / "plan.json").read_text()
    assert make_plan(load_suite(ROOT / "suites" / f"{name}.yaml")).rows == Plan.from_json(committed).rows


def test_the_demo_plans_the_committed_jobs() -> None:
    check("demo")


@pytest.mark.testbed
@pytest.mark.parametrize("name", ["testbed", "ablations", "cheap-training", "choose"])
def test_suites_of_the_testbed_plan_the_committed_jobs(name: str) -> None:
    check(name)


def test_a_plan_is_written_as_it_always_was() -> None:
    committed = ROOT / "docs" / "results" / "testbed" / "plan.json"
    plan = Plan.from_json(committed.read_text())
    assert plan.rows and plan.to_json() == committed.read_text()


def test_jobs_reach_another_process_unchanged(write: Write) -> None:
    for job in make_plan(load_suite(write())).jobs.values():
        assert pickle.loads(pickle.dumps(job)) == job
