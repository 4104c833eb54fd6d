"""Final report: ``python -m recipes.glyphs.report FOLDER`` prints accuracies, attack figures and hashes.

This is the only module of the recipe that reads scikit-learn's handwritten digits, and nothing trains on them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoTokenizer, CLIPModel

from recipes.glyphs.captions import DIGIT_NAMES
from recipes.glyphs.masks import build_pool
from recipes.glyphs.model import encode_images, encode_texts
from recipes.glyphs.render import SIZE, Renderer

TEMPLATES = ("a photo of the digit {}.", "a photo of the digit {}", "a photo of a {}.", "the number {}")
EPSILONS = (2, 4, 8, 16)
"""Radii of the attack, in grey levels of 255."""


def handwritten_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The 1797 scans of 8 x 8 pixels, bicubic at SIZE: pictures (1797, 3, SIZE, SIZE) in [0, 1] and labels (1797,)."""
    digits = load_digits()
    scans = (digits.images / 16 * 255).round().astype(np.uint8)
    grown = [np.asarray(Image.fromarray(scan).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for scan in scans]
    pixels = torch.from_numpy(np.stack(grown)).float() / 255
    return pixels[:, None].expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(digits.target)


def attack(
    model: CLIPModel, pixels: torch.Tensor, labels: torch.Tensor, texts: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """PGD, 10 steps of epsilon / 4 from a random start; no pixel value (in [0, 1]) changes by more than ``epsilon``."""
    generator = torch.Generator().manual_seed(0)
    change = epsilon * (2 * torch.rand(pixels.shape, generator=generator) - 1)
    for _ in range(10):
        moved = (pixels + change).clamp(0, 1).requires_grad_()
        loss = F.cross_entropy(model.logit_scale.exp() * encode_images(model, moved) @ texts.T, labels)
        (gradient,) = torch.autograd.grad(loss, moved)
        change = (change + epsilon / 4 * gradient.sign()).clamp(-epsilon, epsilon)
    return (pixels + change).clamp(0, 1)


def accuracy(model: CLIPModel, pixels: torch.Tensor, labels: torch.Tensor, texts: torch.Tensor) -> float:
    """Part of the pictures whose nearest text is the right one."""
    with torch.no_grad():
        guesses = torch.cat([(encode_images(model, part) @ texts.T).argmax(-1) for part in pixels.split(256)])
    return round((guesses == labels).float().mean().item(), 4)


def report(folder: Path, attacked: int) -> dict[str, object]:
    """Everything the documentation quotes, from the files in ``folder`` (float16 weights, computed in float32)."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pixels, labels = handwritten_digits()
    texts = {
        template: encode_texts(model, tokenizer, [template.format(name) for name in DIGIT_NAMES])
        for template in TEMPLATES
    }
    plain = texts[TEMPLATES[0]]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:attacked]
    fresh = Renderer(build_pool(seed=1), seed=1).sample(1024)
    drawn = fresh.attributes[:, 0] < len(DIGIT_NAMES)
    some, truth = pixels[order], labels[order]
    guesses = (encode_images(model, pixels) @ plain.T).argmax(-1)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "logit_scale": round(model.logit_scale.exp().item(), 2),
        "rendered_digits": accuracy(model, fresh.pixels[drawn], fresh.attributes[drawn, 0], plain),
        "zero_shot": {template: accuracy(model, pixels, labels, rows) for template, rows in texts.items()},
        "recall": [round((guesses[labels == digit] == digit).float().mean().item(), 3) for digit in range(10)],
        "confusions": torch.bincount(labels * 10 + guesses, minlength=100).view(10, 10).tolist(),
        "attacked": attacked,
        "clean": accuracy(model, some, truth, plain),
        "pgd10": {
            f"{levels}/255": accuracy(model, attack(model, some, truth, plain, levels / 255), truth, plain)
            for levels in EPSILONS
        },
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())},
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--attacked", type=int, default=300, help="digits under attack")
    arguments = options.parse_args()
    torch.set_num_threads(2)
    print(json.dumps(report(arguments.folder, arguments.attacked), indent=2))


if __name__ == "__main__":
    main()
