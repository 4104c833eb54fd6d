"""One progress display: lines in a log, a bar on a terminal, nothing where it is not wanted."""

from __future__ import annotations

import io
import logging
import re
import time

import pytest
import torch

from apd.bench import load_suite, make_plan
from apd.bench.progress import BenchProgress
from apd.evaluation.progress import Pace, shown
from apd.util import progress as module
from apd.util.messages import command_line, get_logger, speaking
from apd.util.progress import Count, Progress, watched

from .command_line import Said
from .suites import Write


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.01)
    monkeypatch.setattr(module, "PATIENCE", 0.0)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    """Standard error that passes for a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return capsys


def line_with(said: Said, wanted: str) -> str:
    """The first line that holds ``wanted``, once it is there."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for line in said():
            if wanted in line:
                return line
        time.sleep(0.005)
    raise AssertionError(f"no line with {wanted!r} in {said()}")


def test_lines_come_while_the_work_goes_on_and_none_afterwards(said: Said) -> None:
    count = Count(8, "steps", done=2)
    with Progress("training", count):
        assert re.fullmatch(r"training: 2 of 8 steps, \d+ s", line_with(said, "2 of 8"))
        time.sleep(0.02)
        count.advance(3)
        assert line_with(said, "5 of 8")
    lines = len(said())
    time.sleep(0.05)
    assert len(said()) == lines


def test_a_display_within_another_and_a_quiet_one_show_nothing(said: Said) -> None:
    with Progress("outer", Count(2)), Progress("inner", Count(3)):
        line_with(said, "outer")
        time.sleep(0.05)
    assert not [line for line in said() if "inner" in line]
    lines = len(said())
    with speaking(quiet=True), Progress("quiet", Count(2)):
        time.sleep(0.05)
    assert len(said()) == lines
    with Progress("again", Count(2)):
        line_with(said, "again")


def test_items_pass_in_order_and_their_errors_end_the_display(said: Said) -> None:
    assert list(watched(iter("abc"), 3, "reading")) == ["a", "b", "c"]
    with pytest.raises(ZeroDivisionError):
        list(watched((1 // n for n in (1, 0)), 2, "dividing"))
    with Progress("free again", Count(1)):
        line_with(said, "free again")


@pytest.mark.parametrize("keep", [True, False])
def test_a_bar_on_a_terminal_with_messages_above_it(terminal: pytest.CaptureFixture[str], keep: bool) -> None:
    log = get_logger("apd.training")
    with command_line(), Progress("[red]title\x1b[31m", Count(8, "steps", done=2), keep=keep) as progress:
        progress.count.advance(2)
        log.warning("look [bold]here[/bold] :smile: \x07")
    shown_text = terminal.readouterr().err
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown_text)
    assert "Warning: look [bold]here[/bold] :smile: \\x07\n" in plain
    assert "[red]title\\x1b[31m" in plain and "━" in plain and "2 of 8 steps" in plain
    assert "4 of 8 steps" in plain, "the last state is shown"
    assert (shown_text[-8:] == "\x1b[1A\x1b[2K") == (not keep), "a bar that is not kept is wiped out"


@pytest.mark.parametrize("title", ["attack", "autoattack on zero-shot CLIP, whatever it may be called", ""])
@pytest.mark.parametrize("columns", [40, 80, 132])
def test_what_is_told_beside_a_bar_is_whole(title: str, columns: int) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(width=columns, file=io.StringIO(), force_terminal=True, color_system=None)
    pace = Pace("autoattack", 500, 128, 128, 1000)
    pace.begin("apgd-dlr")
    progress = Progress(title, pace)
    progress._live = Live(console=console)
    with console.capture() as capture:
        console.print(progress._bar())
    shown = " ".join(capture.get().split())
    assert str(pace) in shown and title in shown, "nothing is cut off"
    assert max(map(len, capture.get().splitlines())) <= columns


def test_the_time_left_counts_what_follows() -> None:
    now = [0.0]
    count = Count(10, "steps", now=lambda: now[0], then=60.0)
    assert "left" not in str(count)
    now[0] = 5.0
    count.advance(5)
    assert str(count) == "5 of 10 steps, 5 s, about 65 s left in all"


def test_no_bar_where_a_program_has_a_log_of_its_own(terminal: pytest.CaptureFixture[str], said: Said) -> None:
    with speaking(), Progress("training", Count(8)):
        line_with(said, "0 of 8")
    assert terminal.readouterr().err == ""


def test_no_bar_below_a_level_that_a_program_has_set(
    terminal: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "apd")
    with command_line(), Progress("training", Count(8), keep=True):
        get_logger("apd.training").info("an epoch")
    assert terminal.readouterr().err == ""


def test_the_passes_of_an_attack_are_told(said: Said) -> None:
    model, pace = torch.nn.Identity(), Pace("autoattack", 30, 12, 18, 40)
    with shown(pace, "autoattack on zero-shot CLIP", model):
        assert re.fullmatch(r"autoattack on zero-shot CLIP: 12 of 30 images done, \d+ s", line_with(said, "12 of 30"))
        pace.begin("fab-t")
        model(torch.rand(1))
        line = r"autoattack on zero-shot CLIP: 12 of 30 images done, in fab-t, \d+ s, at most about .+ left"
        assert re.fullmatch(line, line_with(said, " left"))
    model(torch.rand(1))
    assert pace.passes == 1, "nobody counts any longer"


def test_the_time_left_is_bounded_in_the_first_batch_and_estimated_afterwards() -> None:
    seconds = 100.0
    pace = Pace("autoattack", 23, 3, 8, 1000, now=lambda: seconds)  # 20 images in three batches
    assert str(pace) == "3 of 23 images done, 0 s"
    pace.begin("apgd-t")
    seconds += 70
    pace.look(500)
    assert str(pace) == "3 of 23 images done, in apgd-t, 1 min 10 s, at most about 6 min left"  # 3 * 140 - 70 = 350 s
    pace.look(10_000)
    assert str(pace).endswith("at most about 2 min left"), "two more batches like this one"
    seconds += 10
    pace.advance(8)
    seconds += 20
    assert str(pace) == "11 of 23 images done, 1 min 40 s, about 2 min left"  # 12 images of 10 s, 20 s of them gone
    pace.begin("autoattack")
    seconds += 100
    assert str(pace) == "11 of 23 images done, 3 min 20 s", "later than expected: nothing is known"


def test_training_images_pass_with_a_gradient() -> None:
    model, pace = torch.nn.Identity(), Pace("pgd-1", 2, 0, 2, 3)
    with speaking(quiet=True), shown(pace, "pgd-1", model):
        model(torch.rand(1).requires_grad_())
        assert pace.passes == 2
        with torch.no_grad():
            model(torch.rand(1).requires_grad_())
        assert pace.passes == 3


def test_a_bench_in_a_log(write: Write, said: Said) -> None:
    plan = make_plan(load_suite(write()))
    with BenchProgress(plan, dict.fromkeys(plan.jobs, 60.0), 1):
        assert re.fullmatch(r"\[0/5\] at work for \d+ s; about .* left", line_with(said, "at work"))
