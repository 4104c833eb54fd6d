"""Classifying image files, beside the model alone on the same images in memory: how much of its speed is left.

The files are JPEG files of noise at the encoder's size. What `apd predict` does once, importing torch and loading the model, is
in no figure.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import apd
from apd.data.decode import decode_all
from apd.predict import BATCH, classify_files
from benchmarks.cases import Case, Options, Results, Row
from benchmarks.geometry import GEOMETRIES, class_names
from benchmarks.measure import Side, Times, compared, interleaved, paired
from benchmarks.startup import photos

CLASSES = 10


def cases(options: Options, results: Results) -> Iterator[Case]:
    """The suite: 1,000 files in ten rounds; quick: 40 in two, for the smallest geometry."""
    geometry, images, rounds = ("mini", 40, 2) if options.quick else (options.geometry, 1000, 10)
    about = {"geometry": geometry, "images": images, "batch": BATCH, "classes": CLASSES}
    gflop = images / rounds * GEOMETRIES[geometry].image_gflop(tokens=0)
    sides = dict.fromkeys(("ours", "floor"), Side(gflop, rounds))
    yield Case(
        f"predict-{images}{options.suffix(geometry)}", about, lambda: measure(options, geometry, images, rounds), sides
    )


def measure(options: Options, geometry: str, images: int, rounds: int) -> Row:
    """Seconds a round of `images / rounds` files; ``share`` is the median of floor / ours, the model's throughput that is left.

    ``share_processor`` is the same ratio of the seconds that the process computed, on which other work of the machine has less
    influence: with one thread on one core, it is what ``share`` would be on an idle machine.
    """
    encoder, _ = options.load(geometry)
    classifier = apd.PromptedCLIP(encoder, None, class_names(CLASSES))
    with tempfile.TemporaryDirectory() as place:
        size, per_round = encoder.info.image_size, images // rounds
        files = sorted(photos(Path(place) / "photos", CLASSES, images // CLASSES, size).rglob("*.jpg"))
        parts = iter([files[first : first + per_round] for first in range(0, images, per_round)])
        known = decode_all(
            [str(f) for f in files[:per_round]], files[:per_round], encoder.info.preprocessing, False, False
        )
        x = known[0].to(options.device).float() / 255
        floor = on_pixels(classifier, x, BATCH)
        floor()  # class features are computed once
        computed: Times = {"ours": [], "floor": []}
        functions = {
            "ours": computing(lambda: list(classify_files(classifier, next(parts))), computed["ours"]),
            "floor": computing(floor, computed["floor"]),
        }
        row = compared(interleaved(functions, dict.fromkeys(functions, rounds), options.device))
    processor, _ = paired(computed, "floor", "ours")
    return row | {
        "share": 1 / row["ratio_floor"],
        "share_processor": processor,
        "images_per_s": per_round / row["ours_s"],
    }


def computing(own: Callable[[], object], seconds: list[float]) -> Callable[[], None]:
    """The function, which notes how long all threads of the process computed in it."""

    def run() -> None:
        started = time.process_time()
        own()
        seconds.append(time.process_time() - started)

    return run


def on_pixels(classifier: apd.PromptedCLIP, x: torch.Tensor, batch: int) -> Callable[[], None]:
    """The model alone, on images (N,3,S,S) that are decoded."""

    def run() -> None:
        with torch.no_grad():
            for part in x.split(batch):
                classifier(part).softmax(dim=-1).tolist()

    return run
