"""What a person waits for besides the model: the command line, the first training step, images."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

import apd
from benchmarks.cases import Case, Options, Results, Row
from benchmarks.geometry import GEOMETRIES, class_names
from benchmarks.measure import Side, interleaved, wait_for

# A class; a folder without splits leaves 16 of them for training.
PHOTOS = 30
# Runs the command line, says when the first training step begins, and stops there.
FIRST_STEP = """
import os, sys
from apd.training.step import TrainStep
TrainStep.forward = lambda *_, **__: (os.write(1, b"first step\\n"), os._exit(0))
from apd.cli import main
main()
"""


def photos(folder: Path, classes: int, per_class: int, side: int = 320) -> Path:
    """A folder of class folders with JPEG files of noise, somewhat larger than the encoder's images."""
    rng = np.random.default_rng(0)
    for name in class_names(classes):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
            coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / name / f"{number:03d}.jpg")
    return folder


def command(words: Sequence[str]) -> Callable[[], None]:
    """Runs it to the end; a failure is an error."""

    def run() -> None:
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{words[-1]}: {done.stderr.strip()}")

    return run


def help_case(options: Options) -> Case:
    """Seconds of ``apd --help``, beside those of a Python that does nothing."""

    def measure() -> Row:
        sides = {"ours": command(["-m", "apd", "--help"]), "floor": command(["-c", "pass"])}
        times = interleaved(sides, dict.fromkeys(sides, 5), options.device)
        return {f"{side}_s": median(seconds) for side, seconds in times.items()} | {"rounds": {"ours": 5, "floor": 5}}

    return Case("apd-help", {"command": "apd --help"}, measure, seconds=3)


def first_step_case(options: Options, geometry: str) -> Case:
    """Seconds from the start of ``apd train`` on a local model folder and a folder of photos to its first step."""
    rounds = 1 if options.quick else 3

    def measure() -> Row:
        model = options.folder(GEOMETRIES[geometry])
        with tempfile.TemporaryDirectory() as place:
            data = photos(Path(place) / "photos", 10, PHOTOS)
            words = ["-c", FIRST_STEP, "train", str(data), "--model", str(model), "--device", str(options.device)]
            started = command([*words, "--output", str(Path(place) / "run"), "--overwrite"])
            times = interleaved({"ours": started}, {"ours": rounds}, options.device)["ours"]
        return {"ours_s": median(times), "rounds": {"ours": rounds}}

    about = {"geometry": geometry, "classes": 10, "photos": 10 * PHOTOS, "shots": 16}
    return Case(f"first-step{options.suffix(geometry)}", about, measure, seconds=10 + 10 * rounds)


def waiting_case(options: Options, geometry: str, classes: int) -> Case:
    """Seconds of a 16-shot epoch in which the model waits for its batch, and their share of the epoch.

    Images are decoded before the first epoch (``decode_s``, training and validation images) and kept.
    """

    def measure() -> Row:
        from apd.training import batches, loop
        from apd.training.batches import Batches

        spent = {"batch": 0.0, "step": 0.0, "decode": 0.0}

        def timed(name: str, method: Any) -> Any:
            def run(*arguments: Any, **named: Any) -> Any:
                wait_for(options.device)
                started = time.perf_counter()
                result = method(*arguments, **named)
                wait_for(options.device)
                spent[name] += time.perf_counter() - started
                return result

            return run

        watched = (
            patch.object(Batches, "draw", timed("batch", Batches.draw)),
            patch.object(loop.Loop, "train_batch", timed("step", loop.Loop.train_batch)),
            patch.object(batches, "decode", timed("decode", batches.decode)),
        )
        with watched[0], watched[1], watched[2]:
            train_an_epoch(options, geometry, classes)
        share = spent["batch"] / spent["step"]
        return {"ours_s": spent["batch"], "epoch_s": spent["step"], "share": share, "decode_s": spent["decode"]}

    about = {"geometry": geometry, "classes": classes, "shots": 16, "method": "fap", "batch": 32}
    # The epoch, and its validation by PGD-5 on some more images.
    sides = {"ours": Side(16 * classes * (8 + 4) * GEOMETRIES[geometry].image_gflop(), 1)}
    return Case(f"waiting-for-images{options.suffix(geometry)}", about, measure, sides, seconds=5)


def train_an_epoch(options: Options, geometry: str, classes: int) -> None:
    """One epoch of FAP on 16 photos a class."""
    clip = apd.load_clip(options.folder(GEOMETRIES[geometry]), device=options.device)
    with tempfile.TemporaryDirectory() as place:
        data = apd.load_data(photos(Path(place) / "photos", classes, PHOTOS), shots=16)
        method = {"name": "fap", "prompts": {"text_depth": "all", "visual_depth": "all"}}
        where = {"output": Path(place) / "run", "device": str(options.device)}
        apd.train(clip, data, method=method, epochs=1, validate_every=1, **where)


def cases(options: Options, results: Results) -> Iterator[Case]:
    """The suite; quick: the epoch on the smallest geometry, where the model is too fast for images to hide behind it."""
    yield help_case(options)
    yield first_step_case(options, options.geometry)
    yield waiting_case(options, "mini" if options.quick else options.geometry, 4)
