"""In a log, too, one sees that something is going on, and how far it is."""

from __future__ import annotations

import re
import threading
import time

import pytest

from apd import heartbeat as module
from apd.bench import load_suite, make_plan
from apd.bench.progress import BenchProgress
from apd.evaluation.progress import bar
from apd.heartbeat import heartbeat
from apd.training.monitor import TrainingProgress

from .test_bench_run import Write, write

__all__ = ["write"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.01)


def err_with(capfd: pytest.CaptureFixture[str], wanted: str) -> str:
    """What is on standard error, once it holds ``wanted``."""
    text, until = "", time.monotonic() + 20
    while wanted not in text and time.monotonic() < until:
        time.sleep(0.01)
        text += capfd.readouterr().err
    return text


def test_a_line_comes_while_the_work_goes_on_and_none_afterwards() -> None:
    said, enough = list[str](), threading.Event()

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            enough.set()

    with heartbeat(lambda: f"line {len(said)}", say):
        assert enough.wait(20)
    lines = len(said)
    time.sleep(0.05)
    assert said == [f"line {i}" for i in range(lines)]
    with heartbeat(lambda: "unwanted", said.append, wanted=False):
        time.sleep(0.05)
    assert len(said) == lines


def test_attacks_in_a_pipe(capfd: pytest.CaptureFixture[str]) -> None:
    with bar("pgd-20", 30, quiet=False) as advance:
        advance(12)
        assert re.search(r"^pgd-20: 12 of 30 images, \d+ s$", err_with(capfd, "12 of 30"), re.MULTILINE)
    capfd.readouterr()
    with bar("pgd-20", 30, quiet=True):
        time.sleep(0.05)
    assert capfd.readouterr().err == ""


def test_training_in_a_pipe(capfd: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress(8, 2, "apd") as progress:
        progress.advance()
        assert re.search(r"^apd: step 3 of 8, \d+ s$", err_with(capfd, "step 3 of 8"), re.MULTILINE)
    capfd.readouterr()
    with TrainingProgress(8, 2, "apd", visible=False):
        time.sleep(0.05)
    assert capfd.readouterr().err == ""


def test_a_bench_in_a_pipe(write: Write) -> None:
    plan, said, told = make_plan(load_suite(write())), list[str](), threading.Event()

    def say(text: str) -> None:
        said.append(text)
        told.set()

    with BenchProgress(plan, dict.fromkeys(plan.jobs, 60.0), 1, say):
        assert told.wait(20)
    assert re.fullmatch(r"\[0/5\] at work for \d+ s; about .* left", said[0])
