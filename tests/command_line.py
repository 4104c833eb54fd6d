"""The command line as tests use it: in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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


def in_process(*arguments: object, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run `apd` in a process of its own."""
    command = [sys.executable, "-m", "apd", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **settings)
