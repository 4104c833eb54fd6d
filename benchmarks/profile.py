"""Where a training step spends its time: by part, and by operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

import apd
from apd.attacks import PGD
from apd.files import write_atomic
from apd.methods.base import Step
from apd.training.optim import build_optimizer
from apd.training.settings import OptimizerSettings
from benchmarks.cases import Options
from benchmarks.geometry import GEOMETRIES
from benchmarks.measure import interleaved, machine
from benchmarks.step import THREAT, Problem, floor, problem
from benchmarks.step_rows import FLOORS, method_settings


class Parts:
    """Our step cut into parts that can be timed alone; to be run in the order of ``functions``.

    The cut is at the class features: the loss's backward stops there, and the text tower's goes on from their gradient.
    """

    def __init__(self, p: Problem) -> None:
        self.p, self.attack = p, PGD(steps=p.steps, step_size=1.0)
        self.optimizer = build_optimizer(OptimizerSettings(), list(p.method.parameters()))
        self.functions = {
            "text forward": self._text,
            "attack's preparation": self._prepare,
            "attack": self._attack,
            "loss": self._loss,
            "vision backward": self._vision_backward,
            "text backward": self._text_backward,
            "optimiser": self._update,
        }

    def _text(self) -> None:
        self.p.method.zero_grad()
        with self.p.autocast():
            self.bound = self.p.method.student.bind()
        self.classes = self.bound.classes.detach().requires_grad_()
        self.step = Step(self.p.x, self.p.labels, replace(self.bound, classes=self.classes))

    def _prepare(self) -> None:
        with self.p.autocast():
            self.objective = self.p.method.inner(self.step, self.step.student.detach())

    def _attack(self) -> None:
        with self.p.autocast():
            self.x_adv = self.attack(self.objective, self.p.x, THREAT, self.p.seeds).detach()

    def _loss(self) -> None:
        with self.p.autocast():
            self.loss: Tensor = torch.stack(list(self.p.method.loss(self.step, self.x_adv).values())).sum()

    def _vision_backward(self) -> None:
        self.loss.backward()

    def _text_backward(self) -> None:
        self.bound.classes.backward(self.classes.grad)

    def _update(self) -> None:
        self.optimizer.step()


def profile(options: Options, kinds: Sequence[str] = ("fap", "apd-online")) -> None:
    """Write ``profile-<kind>.md`` for steps of these kinds (keys of `FLOORS`), at batch 4 and 100 classes."""
    geometry = "mini" if options.quick else options.geometry
    for kind in kinds:
        p = problem(*options.load(geometry), *method_settings(kind, GEOMETRIES[geometry]), 4, 100)
        text = describe(p, kind, geometry, options, rounds=1 if options.quick else 3)
        file = options.results / f"profile-{kind}{options.suffix(geometry)}.md"
        write_atomic(file, text)
        print(file)


def describe(p: Problem, kind: str, geometry: str, options: Options, rounds: int) -> str:
    """The tables as Markdown."""
    parts = Parts(p)
    for function in parts.functions.values():
        function()
    rows: list[dict[str, list[float]]] = []
    for _ in range(rounds):
        # One part after the other: each needs what the one before it left.
        rows.append(interleaved(parts.functions, dict.fromkeys(parts.functions, 1), options.device))
    seconds = {name: median(row[name][0] for row in rows) for name in parts.functions}
    total = sum(seconds.values())
    bare = median(
        interleaved({"floor": floor(p, **FLOORS[kind][0])}, {"floor": rounds + 1}, options.device)["floor"][1:]
    )
    lines = [
        f"# A step of {kind}: {geometry}, batch 4, 100 classes, PGD-2, float32",
        "",
        f"apd {apd.__version__}, {machine(options.device)}. Parts timed one after the other, median of {rounds}. "
        "An online teacher's passes are part of the loss and of the vision backward.",
        "",
        "| part | seconds | share |",
        "|---|---|---|",
        *(f"| {name} | {value:.3f} | {100 * value / total:.1f} % |" for name, value in seconds.items()),
        f"| whole step | {total:.3f} | |",
        f"| floor (the unavoidable passes, bare) | {bare:.3f} | {100 * bare / total:.1f} % |",
        "",
        "By operator, one step:",
        "",
        "```",
        operators(parts, options.device),
        "```",
    ]
    return "\n".join(lines) + "\n"


def operators(parts: Parts, device: torch.device) -> str:
    """The profiler's table, most expensive first."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with torch.profiler.profile(activities=activities) as profiler:
        for function in parts.functions.values():
            function()
    key = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    return str(profiler.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=45)).strip()
