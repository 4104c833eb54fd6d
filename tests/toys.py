"""Small stand-ins: pictures of a few classes, classifiers that learn them in a second, and a CLIP of two matrices."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apd.data.dataset import Decoded
from apd.models.encoder import DualEncoder, EncoderInfo, Tokens
from apd.models.preprocessing import Preprocessing

SIDE = 8


def pictures(n: int, n_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (n,3,8,8) in [0,1], a blurred noise pattern a class and noise on top, and labels (n,)."""
    generator = torch.Generator().manual_seed(7)
    patterns = F.interpolate(torch.rand(n_classes, 3, 4, 4, generator=generator), size=SIDE, mode="bilinear")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % n_classes
    noise = torch.randn(n, 3, SIDE, SIDE, generator=generator)
    return (patterns[labels] * 0.4 + 0.3 + 0.2 * noise).clamp(0, 1), labels


def decoded(n: int, n_classes: int, seed: int = 0) -> Decoded:
    """The same pictures as bytes with ids."""
    x, labels = pictures(n, n_classes, seed)
    return Decoded((x * 255).round().to(torch.uint8), labels, tuple(f"picture/{i:03d}" for i in range(n)))


def trained(n_classes: int, kind: str = "conv") -> nn.Module:
    """A linear or convolutional classifier that has learned the pictures; a copy, which may be changed."""
    return copy.deepcopy(_trained(n_classes, kind))


@cache
def _trained(n_classes: int, kind: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, n_classes))
        conv = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(8 * 16, n_classes))
        model = {"linear": linear, "conv": conv}[kind]
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        x, labels = pictures(256, n_classes, seed=99)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels).backward()
            optimizer.step()
        optimizer.zero_grad()
    return model.eval().requires_grad_(False)


class Counting(nn.Module):
    """Counts the images that a model is asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.images = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        z: Tensor = self.model(x)
        return z


class ToyCLIP(DualEncoder):
    """A linear image tower; texts are looked up by their class name's last letter."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        width = len(weight)
        preprocessing = Preprocessing(SIDE, SIDE, "squash", "bicubic", (0.5,) * 3, (0.5,) * 3)
        self.info = EncoderInfo(
            source="toy",
            revision=None,
            family="toy",
            image_size=SIDE,
            preprocessing=preprocessing,
            context_length=8,
            embed_dim=width,
            text_width=width,
            visual_width=width,
            text_depth=0,
            visual_depth=0,
            causal_text=True,
            logit_scale=20.0,
            logit_bias=0.0,
            weights_sha256="",
            tokenizer_sha256="",
        )

    def encode_image(self, x: Tensor, tokens: Tokens = ()) -> Tensor:
        self.check_pixels(x)
        return (x - 0.5).flatten(1) @ self.weight.T

    def encode_text(self, ids: Tensor, tokens: Tokens = ()) -> Tensor:
        return torch.eye(self.info.embed_dim)[ids[:, 0]]

    def prompt_ids(self, texts: Sequence[str], n_tokens: int = 0) -> Tensor:
        return torch.tensor([[ord(text.rstrip(".")[-1]) - ord("a")] for text in texts])

    def trim(self, ids: Tensor) -> Tensor:
        return ids

    def word_states(self, words: str, n_tokens: int) -> list[Tensor]:
        raise NotImplementedError


def toy_clip(n_classes: int) -> ToyCLIP:
    """A toy CLIP that has learned the pictures."""
    return ToyCLIP(trained(n_classes, "linear")[1].weight.detach())
