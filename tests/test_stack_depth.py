"""How many functions of the project lie between what a person calls and what does the work, counted on real stacks."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

import apd
from apd.bench import Machine, bench, engines, load_suite
from apd.cli import main
from apd.models import DualEncoder
from apd.models.fast import blocks, kernels
from apd.training import loop

from .suites import Write

pytestmark = pytest.mark.usefixtures("short_checks")

SOURCE = str(Path(apd.__file__).parent)


def project_frames() -> list[str]:
    """Functions of the project on this thread's stack, the outermost first."""
    names, frame = list[str](), sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(SOURCE):
            names.insert(0, frame.f_code.co_qualname)
        frame: FrameType | None = frame.f_back
    return names


class Thread(threading.Thread):
    """Stands in for a worker process, so that its stack can be seen from here."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...], daemon: bool) -> None:
        super().__init__(target=target, args=args, daemon=daemon)
        self.connection = args[0]

    def kill(self) -> None:
        """End the thread, which ends with its connection."""
        self.connection.hang_up()


def test_from_bench_to_the_training_loop(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed_over, training = list[list[str]](), list[list[str]]()
    train = loop.train

    class Pipe:
        """The bench's end of a pipe; keeps the stack on which a job is handed over."""

        def __init__(self, end: Any) -> None:
            self.end = end
            self.fileno, self.recv, self.close = end.fileno, end.recv, end.close

        def send(self, job: Any) -> None:
            handed_over.append(project_frames())
            self.end.send(job)

    def pipe() -> tuple[Any, Any]:
        ours, theirs = multiprocessing.Pipe()
        # The bench closes its copy of the worker's end, of which a thread has no other.
        worker_end = SimpleNamespace(send=theirs.send, recv=theirs.recv, close=lambda: None, hang_up=ours.close)
        return Pipe(ours), worker_end

    def seen(*arguments: Any, **options: Any) -> Any:
        training.append([*project_frames(), train.__name__])
        return train(*arguments, **options)

    monkeypatch.setattr(engines.multiprocessing, "get_context", lambda _: SimpleNamespace(Pipe=pipe, Process=Thread))
    monkeypatch.setattr(engines, "_die_with_parent", lambda: None)
    monkeypatch.setattr(loop, "train", seen)
    suite = write(blocks=[{"protocol": "few-shot", "data": "colours", "methods": "advvlp"}])
    assert bench(load_suite(suite), tmp_path / "out", machine=Machine("local", 1, 1, 0)) == {}
    (parent,), (worker,) = handed_over, training
    assert (parent[0], worker[-1]) == ("bench", "train")
    assert len(parent) + len(worker) <= 7, [*parent, *worker]


def attacked(monkeypatch: pytest.MonkeyPatch, *argv: str) -> list[list[str]]:
    """Run a command, and return each stack on which a frozen linear layer is computed inside PGD."""
    seen, linear = list[list[str]](), kernels.linear

    def spy(layer: Any, x: Any) -> Any:
        frames = project_frames()
        if "PGD.__call__" in frames:
            seen.append([*frames, linear.__name__])
        return linear(layer, x)

    monkeypatch.setattr(blocks, "linear", spy)
    monkeypatch.setattr(sys, "argv", ["apd", *argv])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 0 and seen
    return seen


def test_from_the_command_line_to_the_matrix_product_inside_an_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colours: Path, shallow: DualEncoder
) -> None:
    run, model = str(tmp_path / "run"), ("--model", shallow.info.source)
    train = ("train", str(colours), *model, "--shots", "1", "--epochs", "1", "--output", run)
    loops = [
        frames[frames.index("Loop._epochs") :] for frames in attacked(monkeypatch, *train) if "Loop._epochs" in frames
    ]
    assert loops and max(map(len, loops)) <= 12, max(loops, key=len)
    evaluate = ("evaluate", run, "--attack", "pgd-2", "--limit", "4", "--batch-size", "4")
    stacks = [frames[frames.index("evaluate") :] for frames in attacked(monkeypatch, *evaluate)]
    judged = [frames for frames in stacks if "Evaluation._attack" in frames]
    assert judged and max(map(len, judged)) <= 14, " ".join(max(judged, key=len))
