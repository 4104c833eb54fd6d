"""Our training step beside the step as commonly published, interleaved in one run.

    python -m benchmarks [--quick] [--output benchmarks/results/step.json]

The reference recomputes the text tower at full length in every attack step and keeps its graph, as public code of adversarial
prompt tuning does; ours computes class features once an optimiser step, from prompts cut at the longest end token, and takes
gradients with respect to pixels only. Both use the same encoder, prompts, images and random starts, in float32.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import apd
from apd.attacks import PGD
from apd.files import write_atomic
from apd.methods import find_method
from apd.threat import ThreatModel
from apd.training.step import TrainStep

EPS = ThreatModel(1 / 255)


def published_step(student: apd.PromptedCLIP, x: Tensor, labels: Tensor, seeds: Tensor) -> Tensor:
    """AdvVLP with PGD-2, written plainly: every pass runs both towers, and the loss's graph reaches the prompts."""
    encoder, prompts = student.encoder, student.prompts
    assert prompts is not None
    ids = encoder.prompt_ids([f"{name}." for name in student.class_names], prompts.spec.text_tokens)

    def logits(images: Tensor) -> Tensor:
        text = F.normalize(encoder.encode_text(ids, prompts.text()), dim=-1)
        image = F.normalize(encoder.encode_image(images, prompts.visual()), dim=-1)
        return encoder.info.logit_scale * image @ text.T

    x_adv = EPS.random_start(x, seeds)
    for _ in range(2):
        x_adv.requires_grad_()
        F.cross_entropy(logits(x_adv), labels).backward()
        assert x_adv.grad is not None
        x_adv = EPS.project(EPS.ascend(x_adv.detach(), x_adv.grad, EPS.eps), x)
    for parameter in prompts.parameters():
        parameter.grad = None
    loss = F.cross_entropy(logits(x_adv), labels)
    loss.backward()
    return loss.detach()


def measure(ours: Callable[[], Any], reference: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Median seconds of both and of their paired ratios, with the quartiles of the ratios; the order alternates."""
    times: dict[Any, list[float]] = {ours: [], reference: []}
    ours(), reference()
    for number in range(rounds):
        for function in (ours, reference) if number % 2 else (reference, ours):
            started = time.perf_counter()
            function()
            times[function].append(time.perf_counter() - started)
    ratios = [b / a for a, b in zip(times[ours], times[reference], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "ours_s": statistics.median(times[ours]),
        "reference_s": statistics.median(times[reference]),
        "ratio_reference": statistics.median(ratios),
        "spread": [quartiles[0], quartiles[2]],
    }


def bench_step(batch: int, classes: int, rounds: int) -> dict[str, Any]:
    """One row: the AdvVLP step on the embedded CLIP; both sides must give the same gradients."""
    clip = apd.load_clip("glyphs")
    names = [f"class {number}" for number in range(classes)]
    method = find_method("advvlp")(find_method("advvlp").Settings(), apd.PromptedCLIP(clip, None, names))
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.rand(batch, 3, 32, 32, generator=generator), torch.arange(batch) % classes
    seeds, step = torch.arange(batch), TrainStep(method, PGD(steps=2, step_size=1.0), EPS)

    def ours() -> None:
        method.zero_grad()
        sum(step(x, labels, seeds).values()).backward()

    ours()
    gradients = [p.grad.clone() for p in method.parameters() if p.grad is not None]
    published_step(method.student, x, labels, seeds)
    for ours_gradient, parameter in zip(gradients, (p for p in method.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(ours_gradient, parameter.grad, rtol=1e-2, atol=1e-4)
    row = measure(ours, lambda: published_step(method.student, x, labels, seeds), rounds)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return {"name": f"advvlp-step-glyphs-b{batch}-c{classes}", **row, "extrapolated": False, "machine": machine}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sizes")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/step.json"))
    arguments = parser.parse_args()
    sizes = [(4, 10)] if arguments.quick else [(4, 10), (32, 10), (4, 100), (32, 100)]
    rows = []
    for batch, classes in sizes:
        rows.append(bench_step(batch, classes, rounds=3 if arguments.quick else 15))
        print(json.dumps(rows[-1]), flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(arguments.output, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
