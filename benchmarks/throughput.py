"""Figures of a device: images a second in training and under AutoAttack, share of the matrix peak, peak memory."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import torch

import apd
from apd.attacks import AttackBatch, find
from apd.attacks.threat import ThreatModel
from apd.bench.estimate import attack_passes
from benchmarks.cases import Case, Options, Results, Row
from benchmarks.geometry import GEOMETRIES, class_names
from benchmarks.measure import PeakMemory, Side, interleaved, matmul_rate, take_turns
from benchmarks.step import ours, problem
from benchmarks.step_rows import method_settings, predicted


def training_case(options: Options, geometry: str, batch: int, classes: int, bf16: bool, rounds: int) -> Case:
    """Our FAP step: images a second, and the share of a measured matrix product's rate that its passes reach."""
    shape = GEOMETRIES[geometry]
    gflop, _ = predicted("fap", shape, batch, classes)
    sides = {"ours": Side(gflop, rounds, warm=1)}

    def measure() -> Row:
        dtype = torch.bfloat16 if bf16 else torch.float32
        peak = max(matmul_rate(options.device, dtype, own_kernels) for own_kernels in (False, True))
        p = problem(*options.load(geometry), *method_settings("fap", shape), batch, classes, bf16=bf16)
        with PeakMemory(options.device) as memory:
            times = take_turns({"ours": ours(p)}, sides, options.device)["ours"]
        seconds = median(times)
        return {
            "ours_s": seconds,
            "images_per_s": batch / seconds,
            "matmul_gflop_per_s": peak,
            "share_of_matmul": gflop / seconds / peak,
            "peak_mb": memory.peak,
            "rounds": {"ours": len(times)},
        }

    about = {"method": "fap", "geometry": geometry, "batch": batch, "classes": classes, "bf16": bf16}
    name = f"train-{geometry}-b{batch}-c{classes}-{'bf16' if bf16 else 'fp32'}"
    return Case(name, about, measure, sides)


def autoattack_case(options: Options, geometry: str, images: int) -> Case:
    """AutoAttack at 4/255 on a CLIP of random weights, labels being its predictions: images a second, one batch."""

    def measure() -> Row:
        encoder, _ = options.load(geometry)
        model = apd.PromptedCLIP(encoder, None, class_names(100)).frozen()
        size = encoder.info.image_size
        x = torch.rand(images, 3, size, size, generator=torch.Generator().manual_seed(0)).to(options.device)
        with torch.no_grad():
            y = model(x).argmax(1)
        ids = [str(i) for i in range(images)]
        with PeakMemory(options.device) as memory:
            attack = {"ours": lambda: find("autoattack")(model, AttackBatch(x, y, ids), ThreatModel(4 / 255))}
            (seconds,) = interleaved(attack, {"ours": 1}, options.device)["ours"]
        return {"ours_s": seconds, "images_per_s": images / seconds, "peak_mb": memory.peak, "rounds": {"ours": 1}}

    about = {"geometry": geometry, "images": images, "classes": 100, "eps": "4/255"}
    gflop = images * attack_passes("autoattack", n_classes=100) * 2 * GEOMETRIES[geometry].image_gflop()
    return Case(f"autoattack-{geometry}-n{images}", about, measure, {"ours": Side(gflop, 1)})


def cases(options: Options, results: Results) -> Iterator[Case]:
    """The suite; a CPU gets small batches."""
    cuda = options.device.type == "cuda"
    geometries = ("mini",) if options.quick else ("vit-b-32", "vit-b-16", "vit-l-14") if cuda else (options.geometry,)
    batches = (32, 128, 256) if cuda else (16,)
    for geometry in geometries:
        for batch in batches:
            yield from (training_case(options, geometry, batch, 100, bf16, 10 if cuda else 3) for bf16 in (False, True))
        if cuda:
            yield autoattack_case(options, geometry, 256)
