"""The process that trains: its device, and what Ctrl-C does to it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

from apd.errors import InputError
from apd.util.device import pick_device
from apd.util.processes import is_first_process


class Stoppable(Protocol):
    """What can be asked to stop at the end of a step."""

    stop: bool


def find_accelerator(name: str) -> Accelerator:
    """Find the device of that name, and the other processes that a launcher has started.

    Raises:
        InputError: half a launcher's environment; another device than this process has trained on.
    """
    is_first_process()  # refuses an environment that accelerate would wait in for processes that nobody started
    device = torch.device(pick_device(name))
    if device.index is not None:
        torch.cuda.set_device(device)
    # accelerate keeps the first device of a Python process, and leaves it to its user to notice.
    known = PartialState().device if PartialState._shared_state else None
    if name != "auto" and known is not None and known.type != device.type:
        raise InputError(
            f"This Python process has trained on {known.type} and cannot switch to {name}; start a new one for "
            f"train.device={name}."
        )
    # Of a loss of features alone the text tokens get no gradient, for which DDP would wait otherwise.
    parts = DistributedDataParallelKwargs(find_unused_parameters=True)
    # Given here, it is not read from the environment: every step is one of the optimiser, on gradients of one batch.
    each = GradientAccumulationPlugin(num_steps=1)
    return Accelerator(cpu=device.type == "cpu", kwargs_handlers=[parts], gradient_accumulation_plugin=each)


@contextmanager
def interrupts(loop: Stoppable) -> Iterator[None]:
    """Let Ctrl-C wait for the end of a step, so that the checkpoint is of a whole step; a second one does not wait."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(*_: object) -> None:
        if loop.stop:
            raise KeyboardInterrupt
        loop.stop = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
