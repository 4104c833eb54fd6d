"""Training on more images than fit in memory: peak memory, and how long a step waits for its images.

The images are JPEG files of noise made on the fly: `ORIGINALS` different ones, and hard links to them for the rest, which
saves disk. So the disk is hardly read, and what is measured is decoding. Each row is a process of its own, so that its peak
memory is its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

import apd
from apd.data.streamed import Streamed
from apd.methods import find_method
from apd.settings.train import TrainSettings
from apd.training.batches import decode
from apd.training.loop import Loop
from apd.training.optim import build_optimizer
from apd.training.step import TrainStep
from benchmarks.cases import Case, Options, Results, Row
from benchmarks.geometry import GEOMETRIES, class_names
from benchmarks.measure import PeakMemory, Side, compared, interleaved, wait_for
from benchmarks.startup import photos
from benchmarks.step_rows import method_settings

ORIGINALS = 500
SIDE = 224
CLASSES = 10
KEPT = 256
"""Unlabelled images of the reference, which are kept in memory."""
IN_A_FOLDER = 1000
START = 20.0
"""Seconds for a process to be ready."""
LOOK = 0.001
"""Seconds to make and to check an image."""


def cases(options: Options, results: Results) -> Iterator[Case]:
    """The suite: APD's step with the frozen teacher; quick on the smallest geometry with few images, all of them streamed."""
    geometry, images, steps = ("mini", 2_000, 4) if options.quick else (options.geometry, 100_000, 24)
    batch = 8
    about = {"geometry": geometry, "images": images, "batch": batch, "classes": CLASSES, "side": SIDE}
    # Whole batches in every epoch of both sides: 40 labelled images alone, and with the unlabelled ones.
    mixed = {**about, "images": KEPT, "shots": 4}
    about |= {"memory_gb": 0.0 if options.quick else 4.0}
    # PGD-2: six passes of the student and one of the teacher, streamed and kept.
    gflop = (1 + 1 / 3) * 7 * batch * GEOMETRIES[geometry].image_gflop()
    yield Case(
        f"unlabelled-{images}{options.suffix(geometry)}",
        about,
        lambda: child(options, {**about, "steps": steps}),
        {"ours": Side(gflop, steps, warm=1)},
        seconds=START + LOOK * images,
    )
    yield Case(
        f"unlabelled-beside-labelled{options.suffix(geometry)}",
        mixed,
        lambda: child(options, {**mixed, "steps": steps // 2}),
        {"ours": Side(gflop, steps // 2, warm=1), "reference": Side(gflop, steps // 2, warm=1)},
        seconds=START + LOOK * KEPT,
    )


def child(options: Options, about: dict[str, Any]) -> Row:
    """Measure a row in a process of its own."""
    folder = str(options.folder(GEOMETRIES[about["geometry"]]))
    words = json.dumps({**about, "folder": folder, "device": str(options.device)})
    done = subprocess.run([sys.executable, "-m", "benchmarks.unlabelled", words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{words}: {done.stderr.strip().splitlines()[-1]}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def linked(folder: Path, count: int) -> Path:
    """A folder of ``count`` image files, most of them hard links to a few hundred."""
    originals = sorted(photos(folder / "originals", CLASSES, -(-min(count, ORIGINALS) // CLASSES), SIDE).rglob("*.jpg"))
    for number in range(count):
        place = folder / "linked" / f"{number // IN_A_FOLDER:03d}"
        if number % IN_A_FOLDER == 0:
            place.mkdir(parents=True)
        os.link(originals[number % len(originals)], place / f"{number:06d}.jpg")
    return folder / "linked"


def measure(about: dict[str, Any]) -> Row:
    """Measure streamed images where ``about`` says how many may be kept, else images without labels beside labelled ones."""
    return measure_streamed(about) if "memory_gb" in about else measure_mixed(about)


def measure_mixed(about: dict[str, Any]) -> Row:
    """Seconds a step whose batches have unlabelled images too (ours), and a step on labelled ones alone (reference)."""
    device = torch.device(about["device"])
    clip = apd.load_clip(about["folder"], device=device)
    with tempfile.TemporaryDirectory() as place:
        labelled = photos(Path(place) / "labelled", CLASSES, 5, SIDE)
        source = linked(Path(place), about["images"])
        sides = {
            "ours": stepping(clip, labelled, source, about, 4.0),
            "reference": stepping(clip, labelled, None, about, 4.0),
        }
        for run in sides.values():
            run()
        return compared(interleaved(sides, dict.fromkeys(sides, about["steps"]), device))


def measure_streamed(about: dict[str, Any]) -> Row:
    """Seconds a step with streamed images (ours) and with kept ones (reference), the peak memory, and the shares of waiting.

    ``share`` is what a step spends until it has its batch, cropping included; ``share_decoding`` is the part in which it
    waits for images to be decoded. ``check_s`` is spent before the first step, on listing and checking the images.
    """
    device = torch.device(about["device"])
    clip = apd.load_clip(about["folder"], device=device)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        labelled = photos(root / "labelled", CLASSES, 5, SIDE)
        source = linked(root, about["images"])
        with PeakMemory(device) as memory:
            started = time.perf_counter()
            spent = {"draw": 0.0, "decode": 0.0}
            streamed = stepping(clip, labelled, source, about, about["memory_gb"], spent=spent)
            checked = time.perf_counter() - started
            kept = stepping(clip, labelled, source, about, 4.0, limit=min(KEPT, about["images"]))
            sides = {"ours": streamed, "reference": kept}
            for run in sides.values():
                run()
            spent |= dict.fromkeys(spent, 0.0)  # the first step does not count
            rounds = {"ours": about["steps"], "reference": max(2, about["steps"] // 3)}
            times = interleaved(sides, rounds, device)
    shares = {name: seconds / sum(times["ours"]) for name, seconds in spent.items()}
    row = {**compared(times), "check_s": checked, "share": shares["draw"], "share_decoding": shares["decode"]}
    return row | {"memory_before_mb": memory.before, "peak_mb": memory.peak}


def stepping(
    clip: apd.DualEncoder,
    labelled: Path,
    source: Path | None,
    about: dict[str, Any],
    memory_gb: float,
    *,
    limit: int | None = None,
    spent: dict[str, float] | None = None,
) -> Callable[[], None]:
    """Each call takes the next training step; seconds in which it waits for its images are added to ``spent``."""
    data = apd.load_data(
        labelled, shots=about.get("shots", 1), unlabelled=source, unlabelled_limit=limit, memory_gb=memory_gb
    )
    images = decode(clip, data, skip_bad=False, show=False)
    settings = TrainSettings(batch_size=about["batch"], epochs=1000, device=str(clip.device))
    name, chosen = method_settings("apd-frozen", GEOMETRIES[about["geometry"]])
    cls = find_method(name)
    student = apd.PromptedCLIP(clip, None, class_names(CLASSES))
    method = cls(cls.Settings.model_validate(chosen), student, settings.seed).to(clip.device)
    loop = Loop(method, images, settings, Accelerator(cpu=clip.device.type == "cpu"), None)
    module, optimizer = TrainStep(method, settings), build_optimizer(settings.optimizer, loop.trained)
    if spent is not None:
        assert isinstance(images.unlabelled, Streamed)
        vars(loop.batches)["draw"] = timed(loop.batches.draw, spent, "draw", clip.device)
        vars(images.unlabelled)["_decoded"] = timed(images.unlabelled._decoded, spent, "decode")
    steps = iter(range(loop.steps))

    def run() -> None:
        step = next(steps)
        loop.train_batch(module, optimizer, step, step + 1)

    return run


def timed(own: Callable[..., Any], spent: dict[str, float], name: str, device: torch.device | None = None) -> Any:
    """The function, whose seconds are added up; a device is waited for before and after."""

    def run(*arguments: Any) -> Any:
        if device is not None:
            wait_for(device)
        started = time.perf_counter()
        result = own(*arguments)
        if device is not None:
            wait_for(device)
        spent[name] += time.perf_counter() - started
        return result

    return run


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
