"""How time and memory of our step grow: by classes, batch, attack steps, image size and prompt depth.

Every point is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

import apd
from benchmarks.cases import Case, Options, Results, Row
from benchmarks.geometry import GEOMETRIES, resized
from benchmarks.measure import PeakMemory, Side, interleaved
from benchmarks.step import ours, problem
from benchmarks.step_rows import DEPTH, predicted
from benchmarks.towers import Towers


@dataclass(frozen=True)
class Point:
    """One size of the step; the curves leave it in one direction each."""

    classes: int = 100
    batch: int = 4
    steps: int = 2
    image_size: int = 224
    depth: int = DEPTH


CURVES: dict[str, tuple[int, ...]] = {
    "classes": (10, 30, 300, 1000, 3000, 10_000),
    "batch": (1, 16, 32, 64),
    "steps": (1, 4, 8),
    "image_size": (288, 384),
    "depth": (1, 3, 6, 12),
}
QUICK = {"classes": (10, 1000), "batch": (32,), "steps": (8,)}
ROUNDS = 4
LONG = 3000.0
"""GFLOP of a step that is taken once only; of others the first is not counted."""
START = 8.0
"""Seconds that a process takes to be ready."""


def points(quick: bool) -> Iterator[tuple[str, Point]]:
    """Row names and sizes; the point that all curves share comes first."""
    base = Point(image_size=32, depth=3) if quick else Point()
    yield "base", base
    for name, values in (QUICK if quick else CURVES).items():
        for value in values:
            yield f"{name.replace('_', '-')}-{value}", replace(base, **{name: value})


def cases(options: Options, results: Results) -> Iterator[Case]:
    """The suite, on ViT-B/32 with FAP; quick on the smallest geometry."""
    geometry = "mini" if options.quick else options.geometry
    for name, point in points(options.quick):
        shape = resized(GEOMETRIES[geometry], point.image_size)
        gflop, _ = predicted("fap", shape, point.batch, point.classes)
        gflop *= (2 * point.steps + 4) / 8  # of the passes most are vision
        side = Side(gflop, 2 if options.quick else 1 if gflop > LONG else ROUNDS)
        about = {"geometry": geometry, **asdict(point)}
        yield Case(
            f"growth-{name}{options.suffix(geometry)}",
            about,
            lambda about=about, shape=shape, rounds=side.rounds: child(options, options.folder(shape), about, rounds),
            {"ours": side},
            seconds=START,
        )


def child(options: Options, folder: Path, about: dict[str, Any], rounds: int) -> Row:
    """Measure a point in a process of its own."""
    words = json.dumps({**about, "folder": str(folder), "rounds": rounds, "device": str(options.device)})
    done = subprocess.run([sys.executable, "-m", "benchmarks.growth", words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{words}: {done.stderr.strip().splitlines()[-1]}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(about: dict[str, Any]) -> Row:
    """Seconds a step, the memory before and the peak during it; no seconds where memory does not suffice."""
    device = torch.device(about["device"])
    encoder = apd.load_clip(about["folder"], device=device)
    settings = {"prompts": {"text_depth": about["depth"], "visual_depth": about["depth"]}}
    # The bare towers are not needed, and their weights would count.
    p = problem(encoder, Towers(None, *[torch.empty(0)] * 2), "fap", settings, about["batch"], about["classes"])
    step = ours(replace(p, steps=about["steps"]))
    if device.type == "cpu":
        available = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (memory_available(), available))
    with PeakMemory(device) as memory:
        try:
            times = interleaved({"ours": step}, {"ours": about["rounds"]}, device)["ours"]
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            return {"out_of_memory": True, "memory_before_mb": memory.before}
    rounds = {"ours": len(times[1:]) or 1}
    return {
        "ours_s": median(times[1:] or times),
        "memory_before_mb": memory.before,
        "peak_mb": memory.peak,
        "rounds": rounds,
    }


def lacks_memory(error: Exception) -> bool:
    """Whether an error means that memory did not suffice; all that oneDNN then says is what it could not create."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in ("alloc", "create a primitive"))


def memory_available() -> int:
    """Bytes that this process may use before the system begins to kill."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(0.9 * 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
