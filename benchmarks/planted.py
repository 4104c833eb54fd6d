"""Models with a planted weakness, at which an attack is measured: what can be reached is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES, SIDE = 14, 8


def rare_class(n: int, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor, float]:
    """Make a linear model of 14 classes whose last class is unlikely on every image, and steep.

    Twelve wrong classes are likelier, and rise in other directions, and a little in the opposite one; none of them can be reached
    within eps. The last one can, from every image. A gradient of what is likely leads past it.

    Args:
        n: images.
        seed: of weights and images.

    Returns:
        The model, images (n,3,8,8), labels (n,), all 0, and eps (Linf).
    """
    generator = torch.Generator().manual_seed(seed)
    pixels, eps = 3 * SIDE * SIDE, 8 / 255
    steep = torch.randn(pixels, generator=generator)
    steep *= 36 / (eps * steep.abs().sum())  # the logit's rise within eps
    weights, biases = torch.zeros(CLASSES, pixels), torch.full((CLASSES,), -2.0)
    others = torch.randn(CLASSES - 2, pixels, generator=generator)
    others /= eps * others.abs().sum(dim=1, keepdim=True)  # each rises by 1 within eps, in a direction of its own
    weights[1:-1], weights[-1] = others - 0.01 * steep, steep
    biases[0], biases[-1] = 0.0, -30.0
    linear = nn.Linear(pixels, CLASSES)
    with torch.no_grad():
        linear.weight.copy_(weights)
        linear.bias.copy_(biases - weights.sum(dim=1) / 2)
    model = nn.Sequential(nn.Flatten(), linear).eval().requires_grad_(False)
    # Around grey, with noise that tells images apart and hardly moves a logit.
    x = (0.5 + 0.002 * torch.randn(n, 3, SIDE, SIDE, generator=generator)).clamp(0, 1)
    return model, x, torch.zeros(n, dtype=torch.long), eps
