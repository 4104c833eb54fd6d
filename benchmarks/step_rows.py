"""The rows of the step: which sizes, how often, and what is fitted where measuring would take hours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from apd.methods import find_method
from benchmarks.cases import Case, Options, Results, Row
from benchmarks.geometry import CONTEXT, GEOMETRIES, Geometry, cut_length
from benchmarks.measure import Side, compared, line_through, matmul_rate, take_turns
from benchmarks.step import Problem, floor, leaves, ours, problem, published

DEPTH = 9
# What the floor of each step consists of: options of `floor`, vision passes, text passes.
FLOORS: dict[str, tuple[dict[str, Any], int, int]] = {
    "fap": ({"clean": True}, 8, 2),
    "apd-frozen": ({"teacher": "frozen"}, 7, 2),
    "apd-online": ({"teacher": "online"}, 8, 4),
}
SIDES = ("ours", "floor", "reference")


def method_settings(kind: str, shape: Geometry) -> tuple[str, dict[str, Any]]:
    """Name and settings of the method behind a row: its defaults, at the depth of FAP (all blocks of a shallow tower)."""
    name, _, teacher = kind.partition("-")
    depth = DEPTH if min(shape.text_depth, shape.visual_depth) >= DEPTH else "all"
    settings: dict[str, Any] = {"prompts": {"text_depth": depth, "visual_depth": depth}}
    return name, settings | ({"teacher": teacher} if teacher else {})


def predicted(kind: str, shape: Geometry, batch: int, classes: int) -> tuple[float, float]:
    """GFLOP of the floor and of the published step (12 vision and 12 full-length text passes)."""
    name, settings = method_settings(kind, shape)
    tokens = find_method(name).Settings.model_validate(settings).prompts
    image = batch * shape.image_gflop(tokens.visual_tokens)
    short = classes * shape.text_gflop(cut_length(tokens.text_tokens))
    _, vision, text = FLOORS[kind]
    # The frozen teacher's pass has no tokens.
    saved = image - batch * shape.image_gflop(0) if kind == "apd-frozen" else 0.0
    return vision * image - saved + text * short, 12 * (image + classes * shape.text_gflop(CONTEXT))


@dataclass(frozen=True)
class StepPlan:
    """One step to be measured.

    Args:
        kind: a key of `FLOORS`.
        batch, classes: sizes.
        geometry: a key of `GEOMETRIES`.
        bf16: all sides under autocast.
        rounds: of ours and the floor, at most.
        references: rounds of the published step, at most; 0: it follows the line through other sizes, where there are two.
            APD has no public code, so no reference.
    """

    kind: str
    batch: int
    classes: int
    geometry: str
    bf16: bool = False
    rounds: int = 5
    references: int = 1

    def name(self, options: Options) -> str:
        """Name of the row."""
        precision = "-bf16" if self.bf16 else ""
        return f"{self.kind}-step-b{self.batch}-c{self.classes}{options.suffix(self.geometry)}{precision}"

    def about(self) -> dict[str, Any]:
        """All that the row's figures depend on, but for the number of rounds."""
        method, settings = method_settings(self.kind, GEOMETRIES[self.geometry])
        about = {"method": method, "method_settings": settings, "batch": self.batch, "classes": self.classes}
        about |= {"attack_steps": 2, "geometry": self.geometry, "bf16": self.bf16}
        return about | {"reference": bool(self.references)}

    def gflop(self) -> tuple[float, float]:
        """Of the floor and of the published step."""
        return predicted(self.kind, GEOMETRIES[self.geometry], self.batch, self.classes)

    def sides(self, options: Options) -> dict[str, Side]:
        """What takes turns."""
        least, most = self.gflop()
        # On a GPU kernels hardly differ, and autocast lowers the default's frozen weights anew at every call.
        both_kernels = options.device.type == "cpu" and not self.bf16
        fap = self.kind == "fap"
        sides = {
            "ours": Side(least, self.rounds, warm=int(self.kind == "apd-frozen" or not options.quick)),
            "floor": Side(least, self.rounds, warm=int(not options.quick)),
            "floor_default_kernels": Side(least, min(self.rounds, 3) * both_kernels, own_kernels=False),
            "reference": Side(most, self.references * fap, own_kernels=False),
            "reference_our_kernels": Side(most, int(fap and self.references > 1 and both_kernels)),
        }
        return {name: side for name, side in sides.items() if side.rounds}

    def functions(self, p: Problem) -> dict[str, Callable[[], Any]]:
        """What each side runs."""
        passes = FLOORS[self.kind][0]
        return {
            "ours": ours(p),
            "floor": floor(p, **passes),
            "floor_default_kernels": floor(p, **passes, own_kernels=False),
            "reference": lambda: published(p),
            "reference_our_kernels": lambda: published(p, own_kernels=True),
        }


def step_case(options: Options, results: Results, step: StepPlan) -> Case:
    """The row of one step."""
    batch, classes = step.batch, step.classes
    name, settings = method_settings(step.kind, GEOMETRIES[step.geometry])
    sides, suffix = step.sides(options), options.suffix(step.geometry)

    def measure() -> Row:
        p = problem(*options.load(step.geometry), name, settings, batch, classes, bf16=step.bf16)
        functions = step.functions(p)
        times = take_turns({side: functions[side] for side in sides}, sides, options.device)
        least, most = step.gflop()
        row = compared(times) | {"gflop": {"floor": least, "reference": most}, "rate": rates(options.device)}
        prefix, fap = f"fap-step-b{batch}-c", step.kind == "fap"
        fit = fap and not step.references and not step.bf16 and len(sizes(results, prefix, suffix, "reference")) > 1
        return fitted(row, results, prefix, suffix, classes, ("reference",)) if fit else row

    return Case(step.name(options), step.about(), measure, sides)


def rates(device: torch.device) -> dict[str, float]:
    """GFLOP a second of a large float32 product on torch's default kernels and on ours: how much of a ratio is kernels."""
    return {"default": matmul_rate(device), "ours": matmul_rate(device, own_kernels=True)}


def sizes(results: Results, prefix: str, suffix: str, side: str) -> dict[int, float]:
    """Measured seconds of ``side`` by number of classes."""
    points = {}
    for row in results.rows:
        count = row["name"].removeprefix(prefix).removesuffix(suffix)
        known = row[f"{side}_s"] is not None and side not in row.get("fitted", {})
        if known and row["name"].startswith(prefix) and row["name"].endswith(suffix) and count.isdigit():
            points[int(count)] = row[f"{side}_s"]
    return points


def fitted(row: Row, results: Results, prefix: str, suffix: str, classes: int, sides: tuple[str, ...]) -> Row:
    """``row`` with seconds of ``sides`` from the line ``A + B * C`` through the rows of other numbers of classes."""
    row = {"fitted": {}, **row, "extrapolated": True}
    for side in sides:
        points = sizes(results, prefix, suffix, side)
        if len(points) < 2:
            raise SystemExit(f"{prefix}{classes}{suffix}: {side} needs two measured sizes, there are {sorted(points)}.")
        a, b = line_through(points)
        row[f"{side}_s"] = a + b * classes
        row["fitted"][side] = {"a": a, "b": b, "classes": sorted(points)}
    row["ratio_reference"] = row["reference_s"] / row["ours_s"]
    row["ratio_floor"] = row["ours_s"] / row["floor_s"]
    return row


def fitted_case(options: Options, results: Results, batch: int, classes: int) -> Case:
    """The row of a number of classes at which nothing is measured."""
    prefix, suffix = f"fap-step-b{batch}-c", options.suffix(options.geometry)
    about = {"batch": batch, "classes": classes, "geometry": options.geometry, "fitted": SIDES}

    def measure() -> Row:
        return fitted({}, results, prefix, suffix, classes, SIDES)

    return Case(f"{prefix}{classes}{suffix}", about, measure, derived=True)


def marginal_case(options: Options, few: int = 100, many: int = 1000, rounds: int = 3) -> Case:
    """Seconds a class more, between two numbers of classes, beside those of a bare cut-length text forward and backward."""
    shape = GEOMETRIES[options.geometry]
    name, settings = method_settings("fap", shape)
    sides: dict[str, Side] = {}
    for classes in (few, many):
        text = 2 * classes * shape.text_gflop(cut_length(2))
        sides[f"ours {classes}"] = Side(predicted("fap", shape, 4, classes)[0], rounds, warm=1)
        sides[f"floor {classes}"] = Side(text, rounds, warm=1)
        sides[f"floor_default_kernels {classes}"] = Side(text, rounds, own_kernels=False)

    def measure() -> Row:
        functions: dict[str, Callable[[], Any]] = {}
        for classes in (few, many):
            p = problem(*options.load(options.geometry), name, settings, 4, classes)
            functions |= {
                f"ours {classes}": ours(p),
                f"floor {classes}": bare_text(p),
                f"floor_default_kernels {classes}": bare_text(p, own_kernels=False),
            }
        times = take_turns(functions, sides, options.device)

        def marginal(side: str) -> list[float]:
            pairs = zip(times[f"{side} {few}"], times[f"{side} {many}"], strict=False)
            return [(b - a) / (many - few) for a, b in pairs]

        return compared({side: marginal(side) for side in ("ours", "floor", "floor_default_kernels")})

    about = {"few": few, "many": many, "geometry": options.geometry, "batch": 4}
    suffix = options.suffix(options.geometry)
    return Case(f"fap-marginal-class-c{few}-c{many}{suffix}", about, measure, sides)


def bare_text(p: Problem, own_kernels: bool = True) -> Callable[[], None]:
    """A cut-length text forward and backward to the tokens."""
    towers = p.bare(own_kernels)
    ids, tokens = p.method.student.encoder.trim(p.ids()), leaves(p.prompts.text())

    def run() -> None:
        features = towers.text(ids, tokens)
        features.sum().backward()

    return run


def cases(options: Options, results: Results) -> Iterator[Case]:
    """The suite, the headline's sizes first; then other methods, bf16, larger batches and ViT-B/16."""

    def step(kind: str, batch: int, classes: int, **rest: Any) -> Case:
        return step_case(options, results, StepPlan(kind, batch, classes, **{"geometry": options.geometry, **rest}))

    if options.quick:
        # The reference is what takes long: measured at few classes, fitted at the headline's hundred.
        yield from (step("fap", 4, classes, rounds=1) for classes in (2, 20))
        yield step("fap", 4, 100, rounds=2, references=0)
        yield fitted_case(options, results, 4, 1000)
        yield from (step(kind, 4, 20, rounds=1) for kind in ("apd-frozen", "apd-online"))
        return
    small, *larger = (4, 32, 256) if options.device.type == "cuda" else (4, 16, 32)
    yield from (step("fap", small, classes, references=2) for classes in (100, 30, 10))
    yield fitted_case(options, results, small, 1000)
    yield from (step(kind, small, 100) for kind in ("apd-online", "apd-frozen"))
    yield marginal_case(options)
    yield step("fap", small, 100, bf16=True)
    for batch in larger:
        yield from (step("fap", batch, classes) for classes in (100, 30, 10))
        yield fitted_case(options, results, batch, 1000)
    yield from (step(kind, larger[-1], 100) for kind in ("apd-online", "apd-frozen"))
    yield step("fap", larger[-1], 100, bf16=True, references=0)
    if options.geometry == "vit-b-32":
        yield step("fap", small, 100, geometry="vit-b-16")
