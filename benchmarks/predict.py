"""Classifying image files, beside the model alone on the same images in memory: how much of its speed is left.

The files are JPEG files of noise at the encoder's size. What `apd predict` does once, importing torch and loading the model, is
in no figure.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import apd
from apd.data.decode import decode_all
from apd.predict import BATCH, classify_files
from benchmarks.cases import Case, Options, Results, Row
from benchmarks.geometry import GEOMETRIES, class_names
from benchmarks.measure import Side, compared, interleaved
from benchmarks.startup import photos

CLASSES = 10


def cases(options: Options, results: Results) -> Iterator[Case]:
    """The suite: 1,000 files in ten rounds; quick: 40 in two, for the smallest geometry."""
    geometry, images, rounds = ("mini", 40, 2) if options.quick else (options.geometry, 1000, 10)
    about = {"geometry": geometry, "images": images, "batch": BATCH, "classes": CLASSES}
    gflop = images / rounds * GEOMETRIES[geometry].image_gflop(tokens=0)
    sides = dict.fromkeys(("ours", "floor", "floor_one_batch"), Side(gflop, rounds))
    yield Case(
        f"predict-{images}{options.suffix(geometry)}", about, lambda: measure(options, geometry, images, rounds), sides
    )


def measure(options: Options, geometry: str, images: int, rounds: int) -> Row:
    """Seconds a round of `images / rounds` files; ``share`` is the median of floor / ours, the model's throughput that is left.

    ``floor`` computes in the batches of `apd predict`, ``floor_one_batch`` in a single one.
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
        functions = {
            "ours": lambda: list(classify_files(classifier, next(parts))),
            "floor": on_pixels(classifier, x, BATCH),
            "floor_one_batch": on_pixels(classifier, x, per_round),
        }
        functions["floor"]()  # class features are computed once
        row = compared(interleaved(functions, dict.fromkeys(functions, rounds), options.device))
    return row | {"share": 1 / row["ratio_floor"], "images_per_s": per_round / row["ours_s"]}


def on_pixels(classifier: apd.PromptedCLIP, x: torch.Tensor, batch: int) -> Callable[[], None]:
    """The model alone, on images (N,3,S,S) that are decoded."""

    def run() -> None:
        with torch.no_grad():
            for part in x.split(batch):
                classifier(part).softmax(dim=-1).tolist()

    return run
