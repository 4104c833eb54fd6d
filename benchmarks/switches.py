"""What the switches below the floor save: optimiser steps of `apd`'s own training loop with cheaper attacks, beside PGD-2.

What they cost in robust accuracy is not measured here; see docs/results.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator

import apd
from apd.data.dataset import Decoded
from apd.methods import find_method
from apd.settings.train import TrainSettings
from apd.training.batches import TrainingImages
from apd.training.loop import Loop
from benchmarks.cases import Case, Options, Results, Row
from benchmarks.geometry import GEOMETRIES, class_names, cut_length
from benchmarks.measure import Side, compared, take_turns
from benchmarks.step_rows import method_settings

SWITCHES: dict[str, dict[str, Any]] = {
    "pgd": {},
    "free": {"attack": {"kind": "free"}},
    "carried": {"attack": {"kind": "carried"}},
    "n-fgsm": {"attack": {"kind": "n-fgsm"}},
    "n-fgsm-bf16": {"attack": {"kind": "n-fgsm"}, "precision": "bf16"},
}
"""What each name sets in the section ``train``."""
PASSES = {"pgd": 7.0, "free": 2.25, "carried": 3.0, "n-fgsm": 5.0, "n-fgsm-bf16": 5.0}
"""Image passes an optimiser step with the frozen teacher, for the prediction (docs/training.md)."""
STEPS = TrainSettings().attack.replays
"""Optimiser steps of a measured epoch: as many as free training takes on one batch."""


def epoch(options: Options, geometry: str, batch: int, classes: int, switch: str) -> Callable[[], None]:
    """`STEPS` optimiser steps of APD with its defaults and one of `SWITCHES`.

    The loop that `apd.train` runs, crops and optimiser included, without validation and files.
    """
    encoder, _ = options.load(geometry)
    settings = TrainSettings.model_validate({"batch_size": batch, "epochs": 1, **SWITCHES[switch]})
    name, chosen = method_settings("apd-frozen", GEOMETRIES[geometry])
    cls = find_method(name)
    student = apd.PromptedCLIP(encoder, None, class_names(classes))
    method = cls(cls.Settings.model_validate(chosen), student, settings.seed).to(encoder.device)
    count, size = STEPS * batch, encoder.info.image_size
    pixels = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count, device=encoder.device) % classes
    photos = Decoded(pixels.to(encoder.device), labels, tuple(str(i) for i in range(count)))
    images = TrainingImages(photos, photos, size, mirror=True)
    accelerator = Accelerator(cpu=options.device.type == "cpu")

    def run() -> None:
        Loop(method, images, settings, accelerator, None).run_through(lambda: None)
        accelerator.free_memory()

    return run


def switch_case(options: Options, switch: str, geometry: str, batch: int, classes: int, rounds: int) -> Case:
    """Seconds an optimiser step: ours with the switch, the reference with PGD-2 in float32."""
    shape = GEOMETRIES[geometry]
    text, image = 2 * classes * shape.text_gflop(cut_length(16)), batch * shape.image_gflop(16)
    names = {"ours": switch, "reference": "pgd"}
    # The first epoch is not counted: the teacher's class features are computed once a run.
    sides = {side: Side(STEPS * (text + PASSES[name] * image), rounds, warm=1) for side, name in names.items()}

    def measure() -> Row:
        runs = {side: epoch(options, geometry, batch, classes, name) for side, name in names.items()}
        times = take_turns(runs, sides, options.device)
        return compared({side: [seconds / STEPS for seconds in times[side]] for side in times})

    about = {"method": "apd", "switch": switch, "reference": "pgd", "geometry": geometry, "batch": batch}
    name = f"apd-step-{switch}-b{batch}-c{classes}{options.suffix(geometry)}"
    return Case(name, about | {"classes": classes}, measure, sides)


def cases(options: Options, results: Results) -> Iterator[Case]:
    """The suite: every switch on the geometry of the main rows and on a small one."""
    switches = [switch for switch in SWITCHES if switch != "pgd"]
    if not options.quick:
        yield from (switch_case(options, switch, options.geometry, 16, 100, 3) for switch in switches)
    yield from (switch_case(options, switch, "small", 32, 100, 1 if options.quick else 5) for switch in switches)
