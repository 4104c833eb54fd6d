"""The models under the defences: a small CNN that is trained on the built-in digits in seconds, plainly or adversarially."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apd
from apd.attacks import PGD, Objective, ThreatModel, cross_entropy, misclassified
from apd.data.dataset import Decoded
from apd.models.preprocessing import Preprocessing
from apd.util.seeds import shuffled

SIDE = 16
EPS = 40 / 255
"""Budget at which the plain CNN keeps next to nothing and the adversarially trained one most."""


def digits() -> tuple[Decoded, Decoded, tuple[str, ...]]:
    """Training and test images of the built-in digits at `SIDE` pixels, and their class names."""
    data, size = apd.load_data("digits", shots="all"), Preprocessing.plain(SIDE)
    return data.train.decode(size), data.test.decode(size), data.class_names


def drawn(images: Decoded, n: int) -> Decoded:
    """``n`` images of all classes."""
    index = shuffled(images.ids, 0, "defences")[:n]
    return Decoded(images.images[index], images.labels[index], tuple(images.ids[i] for i in index))


class SmallCNN(nn.Module):
    """Three convolutions and a linear layer."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (SIDE // 4) ** 2, 64),
            nn.ReLU(),
            nn.Linear(64, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layers(x)
        return z


def train(images: Decoded, seed: int, adversarial: bool) -> SmallCNN:
    """Train a `SmallCNN`, on images under PGD-5 if ``adversarial``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SmallCNN()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        pixels, labels = images.pixels(), images.labels
        for epoch in range(16 if adversarial else 8):
            for index in torch.randperm(len(labels)).split(64):
                x, y = pixels[index], labels[index]
                if adversarial:
                    attack = PGD(steps=5, leave=misclassified)
                    x = attack(Objective(model, cross_entropy, y), x, ThreatModel(EPS), index + epoch * len(labels))
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
    return model.eval().requires_grad_(False)
