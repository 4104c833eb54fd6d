"""The command line as tests use it: in this process or in one of its own."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from apd.cli import main


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


Cli = Callable[..., Answer]
Said = Callable[[], list[str]]
QUICK = (
    "--epochs",
    1,
    "--shots",
    2,
    "--set",
    "method.teacher=frozen",
    "--set",
    "train.attack.steps=1",
    "--device",
    "cpu",
)


@contextlib.contextmanager
def ctrl_c_as_before() -> Iterator[None]:
    """`apd` ends its process after Ctrl-C and gives the signal away, which the tests' process goes on with."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def call(*arguments: object) -> Answer:
    """Run `apd` in this process, for fixtures that outlive a test; tests take the fixture `cli`, which reads descriptors too."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["apd", *map(str, arguments)])
        with ctrl_c_as_before(), pytest.raises(SystemExit) as stop:
            main()
    return Answer(int(stop.value.code or 0), out.getvalue(), err.getvalue())


def in_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `apd` in a process of its own, which takes seconds to import torch."""
    command = [sys.executable, "-m", "apd", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
