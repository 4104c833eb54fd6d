"""Floating-point operations per training step, counted: unlike seconds, they do not depend on the machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.cases import Case, Options, Results, Row
from benchmarks.geometry import GEOMETRIES
from benchmarks.measure import Side
from benchmarks.step import floor, ours, problem, published
from benchmarks.step_rows import FLOORS, StepPlan, method_settings

Shape = Sequence[int]


def counted(function: Callable[[], Any], shapes_only: bool = False) -> float:
    """Count the GFLOP (2 x multiply-add) of matrix products, convolutions and attention in one call.

    Attention counts as torch counts it on other devices: all scores, masked ones included, and its backward
    recomputes them. Elementwise operations are not counted.

    Args:
        function: what to count.
        shapes_only: run on tensors without data, which is quick at any size; impossible where the code reads values.
    """
    shapes = FakeTensorMode(allow_non_fake_inputs=True) if shapes_only else nullcontext()
    with shapes, FlopCounterMode(display=False, custom_mapping=formulas()) as counter:
        function()
    return counter.get_total_flops() / 1e9


def formulas() -> dict[Any, Callable[..., int]]:
    """Formulas for the CPU's operators that torch's counter skips without a word."""
    aten, mkldnn = torch.ops.aten, cast(Any, torch.ops.mkldnn)
    formulas: dict[Any, Callable[..., int]] = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    # Builds without oneDNN lack the operator, and `apd.models.fast.kernels` then does not call it.
    if hasattr(mkldnn, "_linear_pointwise"):
        formulas[mkldnn._linear_pointwise] = _linear
    return formulas


def _linear(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


def flops_case(options: Options, step: StepPlan) -> Case:
    """The counts of one step: ours while it computes, the floor and the published step from shapes."""
    name, settings = method_settings(step.kind, GEOMETRIES[step.geometry])

    def measure() -> Row:
        p = problem(*options.load(step.geometry), name, settings, step.batch, step.classes)
        mine = ours(p)
        if step.kind == "apd-frozen":
            mine()  # the teacher's class features, computed once per run
        row = {
            "ours_gflop": counted(mine),
            "floor_gflop": counted(floor(p, **FLOORS[step.kind][0]), shapes_only=True),
        }
        if step.kind == "fap":
            row["reference_gflop"] = counted(lambda: published(p), shapes_only=True)
            row["times_fewer"] = row["reference_gflop"] / row["ours_gflop"]
        return row

    once = Side(step.gflop()[0], 1, warm=int(step.kind == "apd-frozen"))
    return Case(step.name(options), step.about(), measure, {"ours": once}, seconds=5)


def cases(options: Options, results: Results) -> Iterator[Case]:
    """The suite: the sizes of the suite ``step``, under the same names. bfloat16 multiplies as often as float32."""

    def step(kind: str, batch: int, classes: int, **rest: Any) -> Case:
        return flops_case(options, StepPlan(kind, batch, classes, **{"geometry": options.geometry, **rest}))

    if options.quick:
        yield from (step(kind, 4, 20) for kind in FLOORS)
        return
    yield from (step("fap", 4, classes) for classes in (100, 30, 10, 1000))
    yield from (step(kind, 4, 100) for kind in ("apd-online", "apd-frozen"))
    yield from (step("fap", batch, 100) for batch in (16, 32))
    if options.geometry == "vit-b-32":
        yield step("fap", 4, 100, geometry="vit-b-16")
