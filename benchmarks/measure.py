"""Seconds of functions that take turns, and the ratios between them."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apd.models.fast.kernels import linear

PATIENCE = 60.0
"""Seconds after which a side has had enough rounds."""
Times = dict[str, list[float]]
"""Seconds by function, one a round; a function that stops earlier has fewer."""


def wait_for(device: torch.device) -> None:
    """Let the device finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    rounds: Mapping[str, int],
    device: torch.device,
    patience: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Run the functions in turn, ``rounds`` of each, and let another one begin every round.

    So whatever else the machine does meets all of them, and the ratio of two times of one round means something. A function
    that has taken ``patience`` seconds has no further round.
    """
    times: Times = {name: [] for name in functions}
    for number in range(max(rounds.values())):
        names = [name for name in functions if number < rounds[name] and sum(times[name]) < patience]
        if not names:
            break
        for name in names[number % len(names) :] + names[: number % len(names)]:
            wait_for(device)
            started = clock()
            functions[name]()
            wait_for(device)
            times[name].append(clock() - started)
    return times


def paired(times: Times, above: str, below: str) -> tuple[float | None, list[float] | None]:
    """Median of the ratios ``above / below`` round by round, and their quartiles; None where there is nothing to pair.

    >>> paired({"a": [2.0, 4.0], "b": [1.0, 1.0]}, "a", "b")
    (3.0, [2.5, 3.5])
    """
    ratios = [a / b for a, b in zip(times.get(above, []), times.get(below, []), strict=False)]
    if len(ratios) < 2:
        return (ratios[0] if ratios else None), None
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return middle, [low, high]


def compared(times: Times) -> dict[str, Any]:
    """The measured part of a row: medians of ``ours``, ``reference`` and ``floor``, and their paired ratios.

    ``ratio_reference`` is reference / ours (how many times faster), ``ratio_floor`` ours / floor (how far above it); so for
    further references and floors, such as ``floor_default_kernels``.
    """
    sides = [*_SIDES, *(name for name in times if name not in _SIDES)]
    row: dict[str, Any] = {f"{name}_s": statistics.median(times[name]) if times.get(name) else None for name in sides}
    spread = {}
    for name in sides[1:]:
        pair = ("ours", name) if name.startswith("floor") else (name, "ours")
        row[f"ratio_{name}"], spread[f"ratio_{name}"] = paired(times, *pair)
    return row | {"spread": spread, "rounds": {name: len(times.get(name, [])) for name in sides}}


_SIDES = ("ours", "reference", "floor")


def line_through(points: Mapping[int, float]) -> tuple[float, float]:
    """``A`` and ``B`` of the least-squares line ``A + B * C`` through seconds by number of classes.

    >>> line_through({10: 3.0, 20: 5.0, 30: 7.0})
    (1.0, 0.2)
    """
    slope, intercept = statistics.linear_regression(list(points), list(points.values()))
    return round(intercept, 12), round(slope, 12)


def machine(device: torch.device) -> str:
    """The processor, its threads (or the GPU) and the versions that a time depends on."""
    where = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_cpu()}, {torch.get_num_threads()} threads"
    )
    return f"{where}, torch {torch.__version__}, Python {platform.python_version()}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} ({platform.machine()}, {os.cpu_count()} cores)"


@lru_cache
def matmul_rate(device: torch.device, dtype: torch.dtype = torch.float32, own_kernels: bool = False) -> float:
    """GFLOP a second of a large matrix product: the best of several, so a peak that towers do not reach.

    Args:
        device, dtype: of the matrices.
        own_kernels: by `apd.models.fast.kernels.linear`, else by torch's default.
    """
    size = 8192 if device.type == "cuda" else 1536
    layer = nn.Linear(size, size, bias=False, device=device, dtype=dtype).requires_grad_(False)
    x = torch.randn(size, size, device=device, dtype=dtype)
    product = (lambda: linear(layer, x)) if own_kernels else (lambda: layer(x))
    seconds = min(interleaved({"product": product}, {"product": 5}, device)["product"])
    return 2 * size**3 / seconds / 1e9


@dataclass(frozen=True)
class Side:
    """One of those that take turns.

    Args:
        gflop: of a call.
        rounds: at most.
        own_kernels: whether our kernels compute its products.
        warm: calls before the first round.
    """

    gflop: float
    rounds: int
    own_kernels: bool = True
    warm: int = 0

    def seconds(self, device: torch.device) -> float:
        """Predicted, over all rounds."""
        # What towers were seen to reach of one large product's rate; the default's backward and activation are slower.
        once = self.gflop / matmul_rate(device, own_kernels=self.own_kernels) / (0.6 if self.own_kernels else 0.5)
        return once * (self.warm + min(self.rounds, max(1, math.ceil(PATIENCE / max(once, 1e-9)))))


def take_turns(functions: Mapping[str, Callable[[], Any]], sides: Mapping[str, Side], device: torch.device) -> Times:
    """Seconds of ``functions`` in turn, warmed and as often as their ``sides`` say."""
    for name, side in sides.items():
        for _ in range(side.warm):
            functions[name]()
    return interleaved(functions, {name: side.rounds for name, side in sides.items()}, device, PATIENCE)


class PeakMemory:
    """Largest memory since the start of the block, in MB: of this process (CPU, Linux) or of torch's allocator (CUDA)."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.before, self.peak = device, 0.0, 0.0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device) / 1e6
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark so far
            self.before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device) / 1e6
        else:  # Linux adds up the pages of its processors' counters now and then, so both sizes are approximate
            self.peak = max(self.before, _status("VmHWM"))


def _status(field: str) -> float:
    """A size from Linux's record of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))
