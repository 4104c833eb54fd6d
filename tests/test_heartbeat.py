"""In a log, too, one sees that something is going on, and how far it is."""

from __future__ import annotations

import re
import threading
import time

import pytest
import torch

from apd.bench import load_suite, make_plan
from apd.bench.progress import BenchProgress
from apd.evaluation.progress import Pace, shown
from apd.training.collapse import TrainingProgress
from apd.util import progress as module
from apd.util.progress import heartbeat

from .suites import Write


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
    model, pace = torch.nn.Identity(), Pace("autoattack", 30, 12, 18, 40)
    with shown(pace, "undefended, autoattack", model, quiet=False):
        line = r"^undefended, autoattack: 12 of 30 images, \d+ s$"
        assert re.search(line, err_with(capfd, "12 of 30"), re.MULTILINE)
        pace.begin("fab-t")
        model(torch.rand(1))
        line = r"^undefended, autoattack: 12 of 30 images, in fab-t, \d+ s, at most about .+ left$"
        assert re.search(line, err_with(capfd, "left\n"), re.MULTILINE)
    model(torch.rand(1))
    assert pace.passes == 1, "nobody counts any longer"
    capfd.readouterr()
    with shown(pace, "autoattack", model, quiet=True):
        time.sleep(0.05)
    assert capfd.readouterr().err == ""


def test_the_time_left_is_bounded_in_the_first_batch_and_estimated_afterwards() -> None:
    seconds = 100.0
    pace = Pace("autoattack", 23, 3, 8, 1000, now=lambda: seconds)  # 20 images in three batches
    assert str(pace) == "3 of 23 images, 0 s"
    pace.begin("apgd-t")
    seconds += 70
    pace.look(500)
    assert str(pace) == "3 of 23 images, in apgd-t, 1 min 10 s, at most about 6 min left"  # 3 * 140 - 70 = 350 s
    pace.look(10_000)
    assert str(pace).endswith("at most about 2 min left"), "two more batches like this one"
    seconds += 10
    pace.advance(8)
    seconds += 20
    assert str(pace) == "11 of 23 images, 1 min 40 s, about 2 min left"  # 12 images of 10 s, 20 s of them gone
    pace.begin("autoattack")
    seconds += 100
    assert str(pace) == "11 of 23 images, 3 min 20 s", "later than expected: nothing is known"


def test_training_images_pass_with_a_gradient() -> None:
    model, pace = torch.nn.Identity(), Pace("pgd-1", 2, 0, 2, 3)
    with shown(pace, "pgd-1", model, quiet=True):
        model(torch.rand(1).requires_grad_())
        assert pace.passes == 2
        with torch.no_grad():
            model(torch.rand(1).requires_grad_())
        assert pace.passes == 3


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
