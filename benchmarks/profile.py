"""Where a training step spends its time, before and after: by tower, and by kind of operator."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

import apd
from apd.util.files import write_atomic
from benchmarks.cases import Options
from benchmarks.geometry import GEOMETRIES
from benchmarks.measure import interleaved, machine, wait_for
from benchmarks.step import Problem, floor, ours, problem, published
from benchmarks.step_rows import FLOORS, method_settings

PARTS = ("text tower forward", "text tower backward", "image tower forward", "image tower backward")
REST = "losses, pixels' steps, the rest"
OPERATORS = {
    "matrix products": r"addmm|::mm$|bmm|matmul|linear|convolution",
    "attention": r"attention",
    "layer norms": r"layer_norm",
    "activation": r"silu|gelu|sigmoid",
    "copies and gathers": r"copy_|::cat|clone|index|gather|scatter|embedding|zero|fill",
    "other": "",
}
"""Kinds of operators, by what their names hold; the first that fits."""


class Stopwatch:
    """Seconds and calls of the towers' passes, in both directions.

    A backward pass is from the moment at which a tower's output has its gradient to the one at which its inputs have theirs;
    the engine goes through one tower after the other.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.calls = dict.fromkeys(PARTS, 0)
        self._started = dict.fromkeys(PARTS, 0.0)

    def begin(self, part: str) -> None:
        """A pass begins."""
        wait_for(self.device)
        self._started[part] = time.perf_counter()

    def end(self, part: str) -> None:
        """It has ended."""
        wait_for(self.device)
        self.seconds[part] += time.perf_counter() - self._started[part]
        self.calls[part] += 1

    def watch(self, name: str, tower: Callable[[Tensor, Sequence[Tensor]], Tensor]) -> Callable[..., Tensor]:
        """``tower``, timed; it takes pixels or ids, and tokens."""

        def run(first: Tensor, tokens: Sequence[Tensor] = ()) -> Tensor:
            inputs = [first, *tokens]
            moving = [i for i, tensor in enumerate(inputs) if tensor.requires_grad and torch.is_grad_enabled()]
            if moving:
                marked = _mark(lambda: self.end(f"{name} backward"), *(inputs[i] for i in moving))
                for i, tensor in zip(moving, marked, strict=True):
                    inputs[i] = tensor
            self.begin(f"{name} forward")
            features = tower(inputs[0], inputs[1:])
            self.end(f"{name} forward")
            return _mark(lambda: self.begin(f"{name} backward"), features)[0] if features.requires_grad else features

        return run


class _Mark(torch.autograd.Function):
    """The same tensors; ``event`` happens when all their gradients are known."""

    @staticmethod
    def forward(ctx: Any, event: Callable[[], None], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.event = event
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        ctx.event()
        return (None, *gradients)


def _mark(event: Callable[[], None], *tensors: Tensor) -> tuple[Tensor, ...]:
    return cast("tuple[Tensor, ...]", cast(Any, _Mark).apply(event, *tensors))


@dataclass(frozen=True)
class Profile:
    """One step, up to the prompts' gradients.

    Args:
        seconds: of the parts, `REST` among them.
        calls: of the towers' passes.
        operators: seconds by kind of operator.
    """

    seconds: dict[str, float]
    calls: dict[str, int]
    operators: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(self.seconds.values())


def profile_ours(p: Problem) -> Profile:
    """Our step, watched."""
    watch, encoder = Stopwatch(p.x.device), p.method.student.encoder
    with ExitStack() as stack:
        for name, part in (("encode_image", "image tower"), ("encode_text", "text tower")):
            stack.enter_context(patch.object(encoder, name, watch.watch(part, getattr(encoder, name))))
        return profiled(ours(p), watch)


def profile_published(p: Problem) -> Profile:
    """The published step, watched."""
    watch = Stopwatch(p.x.device)
    towers = SimpleNamespace(
        image=watch.watch("image tower", p.towers.image), text=watch.watch("text tower", p.towers.text)
    )
    watched = replace(p, towers=cast(Any, towers))
    return profiled(lambda: published(watched), watch)


def profiled(step: Callable[[], Any], watch: Stopwatch) -> Profile:
    """One step under torch's profiler."""
    cuda = watch.device.type == "cuda"
    with torch.profiler.profile(
        activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    ) as profiler:
        (total,) = interleaved({"step": step}, {"step": 1}, watch.device)["step"]
    operators = dict.fromkeys(OPERATORS, 0.0)
    for event in profiler.key_averages():
        kind = next(kind for kind, names in OPERATORS.items() if re.search(names, event.key))
        operators[kind] += (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
    return Profile(watch.seconds | {REST: total - sum(watch.seconds.values())}, watch.calls, operators)


def profile(options: Options, kinds: Sequence[str] = ("fap", "apd-online")) -> None:
    """Write ``profile-<kind>.md`` for steps of these kinds (keys of `FLOORS`), at batch 4 and 100 classes."""
    geometry = "mini" if options.quick else options.geometry
    for kind in kinds:
        p = problem(*options.load(geometry), *method_settings(kind, GEOMETRIES[geometry]), 4, 100)
        text = describe(p, kind, geometry, rounds=1 if options.quick else 5)
        file = options.results / f"profile-{kind}{options.suffix(geometry)}.md"
        write_atomic(file, text)
        print(file)


def describe(p: Problem, kind: str, geometry: str, rounds: int) -> str:
    """The tables as Markdown; APD has no published step, so no before."""
    bare = floor(p, **FLOORS[kind][0])
    ours(p)(), bare()
    after = sorted((profile_ours(p) for _ in range(rounds)), key=lambda one: one.total)[rounds // 2]
    least = median(interleaved({"floor": bare}, {"floor": rounds}, p.x.device)["floor"])
    columns = {"published": profile_published(p)} if kind == "fap" else {}
    columns["ours"] = after
    what = f"{kind}: {geometry}, batch 4, 100 classes, PGD-2, float32"
    lines = [
        f"### Where a step of {what} spends its time",
        "",
        f"apd {apd.__version__}, {machine(p.x.device)}; ours: the median of {rounds} steps. The floor, the unavoidable passes "
        f"run bare on the same kernels, took {least:.2f} s.",
        "",
        *_table("part", columns, "seconds", (*PARTS, REST)),
        "",
        *_table("operators", columns, "operators", tuple(OPERATORS)),
    ]
    return "\n".join(lines) + "\n"


def _table(title: str, columns: dict[str, Profile], field: str, names: Sequence[str]) -> list[str]:
    """Seconds and shares of every column, and for towers how often they were passed."""
    lines = [f"| {title} | " + " | ".join(f"{name} (s) | share" for name in columns) + " |"]
    lines.append("|---" * (1 + 2 * len(columns)) + "|")
    totals = [sum(getattr(one, field).values()) for one in columns.values()]
    for name in names:
        cells = [name]
        for one, total in zip(columns.values(), totals, strict=True):
            calls = f" in {one.calls[name]} passes" if field == "seconds" and name in one.calls else ""
            value = getattr(one, field)[name]
            cells += [f"{value:.2f}{calls}", f"{100 * value / total:.0f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("| all | " + " | ".join(f"{total:.2f} | " for total in totals) + "|")
    return lines
