"""What the switches below the floor save: optimiser steps of `apd`'s own training loop with cheaper attacks, beside PGD-2.

What they cost in robust accuracy is not measured here; see docs/results.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator

import apd
from apd.data.dataset import Decoded
from apd.methods import find_method
from apd.training.batches import Images
from apd.training.loop import Loop
from apd.training.settings import TrainSettings
from benchmarks.cases import Case, Options, Results, Row
from benchmarks.geometry import GEOMETRIES, class_names, cut_length
from benchmarks.measure import Side, compared, take_turns
from benchmarks.step_rows import method_settings

PASSES = {"pgd": 7.0, "free": 2.25, "carried": 3.0, "n-fgsm": 5.0}
"""Image passes an optimiser step with the frozen teacher, for the prediction (docs/training.md)."""
STEPS = TrainSettings().attack.replays
"""Optimiser steps of a measured epoch: as many as free training takes on one batch."""


def epoch(options: Options, geometry: str, batch: int, classes: int, kind: str) -> Callable[[], None]:
    """`STEPS` optimiser steps of APD with its defaults and ``train.attack.kind=kind``.

    The loop that `apd.train` runs, crops and optimiser included, without validation and files.
    """
    encoder, _ = options.load(geometry)
    settings = TrainSettings.model_validate({"batch_size": batch, "epochs": 1, "attack": {"kind": kind}})
    name, chosen = method_settings("apd-frozen", GEOMETRIES[geometry])
    cls = find_method(name)
    student = apd.PromptedCLIP(encoder, None, class_names(classes))
    method = cls(cls.Settings.model_validate(chosen), student, settings.seed).to(encoder.device)
    count, size = STEPS * batch, encoder.info.image_size
    pixels = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count, device=encoder.device) % classes
    photos = Decoded(pixels.to(encoder.device), labels, tuple(str(i) for i in range(count)))
    images = Images(photos, photos, size, mirror=True)
    accelerator = Accelerator(cpu=options.device.type == "cpu")

    def run() -> None:
        Loop(method, images, settings, accelerator, None, show=False).run_through(lambda: None)
        accelerator.free_memory()

    return run


def switch_case(options: Options, kind: str, geometry: str, batch: int, classes: int, rounds: int) -> Case:
    """Seconds an optimiser step: ours with the switch, the reference with PGD-2."""
    shape = GEOMETRIES[geometry]
    text, image = 2 * classes * shape.text_gflop(cut_length(16)), batch * shape.image_gflop(16)
    kinds = {"ours": kind, "reference": "pgd"}
    # The first epoch is not counted: the teacher's class features are computed once a run.
    sides = {side: Side(STEPS * (text + PASSES[kind] * image), rounds, warm=1) for side, kind in kinds.items()}

    def measure() -> Row:
        runs = {side: epoch(options, geometry, batch, classes, kind) for side, kind in kinds.items()}
        times = take_turns(runs, sides, options.device)
        return compared({side: [seconds / STEPS for seconds in times[side]] for side in times})

    about = {"method": "apd", "attack": kind, "reference": "pgd", "geometry": geometry, "batch": batch}
    name = f"apd-step-{kind}-b{batch}-c{classes}{options.suffix(geometry)}"
    return Case(name, about | {"classes": classes}, measure, sides)


def cases(options: Options, results: Results) -> Iterator[Case]:
    """The suite: every switch on the geometry of the main rows and on a small one."""
    for kind in ("free", "n-fgsm", "carried"):
        if not options.quick:
            yield switch_case(options, kind, options.geometry, 16, 100, 3)
    for kind in ("free", "n-fgsm", "carried"):
        yield switch_case(options, kind, "small", 32, 100, 1 if options.quick else 5)
