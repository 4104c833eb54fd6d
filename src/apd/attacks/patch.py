"""Adversarial patches (Brown 2017, arXiv 1712.09665): a small square that may hold any pixels."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from apd.attacks.evaluation import UNWATCHED, AttackBatch, EvaluationAttack, Found, Watch, repeated
from apd.attacks.objectives import margin_and_gradient
from apd.attacks.threat import ThreatModel
from apd.errors import InputError
from apd.util.seeds import sample_seeds

PLACES = ("center", "top-left", "top-right", "bottom-left", "bottom-right")
PATTERN = r"patch-(\d+(?:\.\d+)?)(?::(.+))?"
"""How a patch is named: ``patch-5`` covers 5 % of the image at a random place, ``patch-5:center`` at a fixed one."""


@dataclass(frozen=True)
class Patch(EvaluationAttack):
    """A square of any pixels, optimised for each image; eps and norm do not limit it.

    Args:
        percent: of the image's area that it covers, at most: the side is rounded down to whole pixels.
        place: one of `PLACES`; None: a random place per image, drawn from its id.
        steps: steps of sign gradient ascent of the margin at each place.
        tries: random places that are tried; at a fixed place, random starts.
    """

    percent: float
    place: str | None = None
    steps: int = 100
    tries: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise InputError(f"{self.name} must cover more than 0 % of the image and at most 100 %, such as patch-5.")
        if self.place is not None and self.place not in PLACES:
            raise InputError(f"{self.name} has no place {self.place!r}; choose from {', '.join(PLACES)}.")

    @classmethod
    def named(cls, name: str) -> Patch:
        """Make the patch of a name; see `PATTERN`."""
        match = re.fullmatch(PATTERN, name)
        assert match is not None
        return cls(float(match[1]), match[2])

    @property
    def name(self) -> str:  # type: ignore[override]
        """What it is called in a result."""
        return f"patch-{self.percent:g}" + (f":{self.place}" if self.place else "")

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Return the model passes per batch if no sample is fooled; one with a gradient counts twice."""
        return (self.tries * (2 * self.steps + 1),)

    def __call__(self, model: nn.Module, batch: AttackBatch, threat: ThreatModel, watch: Watch = UNWATCHED) -> Found:
        """Put a patch on each image of ``batch``."""
        watch.begin(self.name)

        def put(left: AttackBatch, number: int) -> Tensor:
            return self._optimised(model, left, sample_seeds(left.ids, left.seed, "patch", number))

        return Found(repeated(put, self.tries, model, batch), [self.name] * len(batch))

    def limits(self, threat: ThreatModel) -> ThreatModel:
        """Return [0,1], whatever eps and norm are."""
        return ThreatModel(1.0)

    def mask(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Return which pixels (H, W) of images (..., H, W) the patch covers.

        Raises:
            InputError: the patch is smaller than a pixel.
        """
        height, width = shape[-2:]
        side = min(math.isqrt(int(self.percent * height * width / 100)), height, width)
        if side == 0:
            raise InputError(f"{self.name} covers less than one of the {height} x {width} pixels; use a larger patch.")
        down, right = height - side, width - side
        top, left = (int(torch.randint(0, room + 1, (), generator=generator)) for room in (down, right))
        if self.place is not None:
            top = down // 2 if self.place == "center" else down * self.place.startswith("bottom")
            left = right // 2 if self.place == "center" else right * self.place.endswith("right")
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[top : top + side, left : left + side] = True
        return mask

    def _optimised(self, model: nn.Module, batch: AttackBatch, seeds: Tensor) -> Tensor:
        x, masks, starts = batch.x, [], []
        for seed in seeds.tolist():
            generator = torch.Generator().manual_seed(seed)
            masks.append(self.mask(x.shape, generator))
            starts.append(torch.rand(x.shape[1:], generator=generator))
        mask, pixels = torch.stack(masks)[:, None].to(x.device), torch.stack(starts).to(x)
        best, highest = x.clone(), torch.full((len(x),), -math.inf, device=x.device)
        for step in range(self.steps):
            images = torch.where(mask, pixels, x)
            values, gradient = margin_and_gradient(model, images, batch.labels)
            higher = values > highest
            best = torch.where(higher.view(-1, 1, 1, 1), images, best)
            highest = torch.where(higher, values, highest)
            size = 0.1 * (1 - step / self.steps)
            pixels = (pixels + size * gradient.sign()).clamp(0, 1)
        return best
