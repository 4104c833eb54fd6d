"""Minimum-norm attacks: the smallest perturbation that fools, rather than any within a budget."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from apd.attacks.evaluation import UNWATCHED, AttackBatch, EvaluationAttack, Found, Watch
from apd.attacks.objectives import margin, margin_and_gradient
from apd.attacks.threat import Norm, ThreatModel, unit
from apd.errors import InputError

_BISECTIONS = 10
"""Halvings of the segment between the clean image and the best one, at the end."""


class MinimalNorm(EvaluationAttack, ABC):
    """An attack whose result is a distance; within a budget, it counts where that is at most eps."""

    @abstractmethod
    def minimal(self, model: nn.Module, batch: AttackBatch, norm: Norm) -> tuple[Tensor, Tensor]:
        """Return the nearest misclassified images found (B,3,H,W), and their distances (B,).

        The distance is infinite, and the image the clean one, where none was found.
        """

    def __call__(self, model: nn.Module, batch: AttackBatch, threat: ThreatModel, watch: Watch = UNWATCHED) -> Found:
        """Attack ``batch``; images farther away than eps do not count, and stay clean.

        Raises:
            InputError: another norm than those that it measures distances in.
        """
        if threat.norm not in self.norms:
            raise InputError(f"{self.name} attacks within {' and '.join(self.norms)}, not {threat.norm}; take fmn.")
        watch.begin(self.name)
        images, distances = self.minimal(model, batch, threat.norm)
        near = (distances <= threat.eps * (1 + 1e-5)).view(-1, 1, 1, 1)
        return Found(torch.where(near, threat.project(images, batch.x), batch.x), [self.name] * len(batch))


@dataclass(frozen=True)
class FMN(MinimalNorm):
    """Fast Minimum-Norm attack (Pintor 2021, arXiv 2102.12827) for Linf, L2 and L1; deterministic.

    Gradient steps on the margin, projected onto a ball that shrinks while the image fools and grows while it does not. At the end
    the best image is drawn towards the clean one as far as it still fools.

    Args:
        steps: steps.
        step: length (L2) of the first step; it falls to a thousandth along a cosine.
        gamma: relative change of the ball's radius at the first step; it falls to a thousandth along a cosine.
    """

    steps: int = 200
    step: float = 1.0
    gamma: float = 0.05
    name: str = "fmn"

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Return the model passes per batch; one with a gradient counts twice."""
        return (2 * (self.steps + 1) + _BISECTIONS,)

    def minimal(self, model: nn.Module, batch: AttackBatch, norm: Norm) -> tuple[Tensor, Tensor]:
        """Return the nearest misclassified images found (B,3,H,W), and their distances (B,)."""
        x = batch.x
        best, nearest = x.clone(), torch.full((len(x),), math.inf, device=x.device)
        radius, here = nearest.clone(), x.clone()
        for number in range(self.steps + 1):
            values, gradient = margin_and_gradient(model, here, batch.labels)
            ball = ThreatModel(1.0, norm)
            fooled, lengths = values > 0, ball.distance(here, x)
            closer = fooled & (lengths < nearest)
            best, nearest = torch.where(_wide(closer), here, best), torch.where(closer, lengths, nearest)
            if number == self.steps:
                break
            share = _cosine(number / self.steps)
            gamma = self.gamma * share
            # Before the first success the radius is a little beyond where a linear model would be fooled.
            estimate = (lengths - values / ball.slope(gradient).clamp_min(1e-12)) * (1 + gamma)
            grown = torch.where(nearest.isinf(), estimate, radius * (1 + gamma))
            radius = torch.where(fooled, torch.minimum(radius * (1 - gamma), nearest), grown)
            moved = (here + self.step * share * unit(gradient)).clamp(0, 1)
            here = ThreatModel(1.0, norm, shares=radius.clamp(0, 1e6)).project(moved, x)
        best = drawn_in(model, best, x, batch.labels)
        return best, torch.where(nearest.isinf(), nearest, ThreatModel(1.0, norm).distance(best, x))


@dataclass(frozen=True)
class CarliniWagner(MinimalNorm):
    """The L2 attack of Carlini & Wagner (2017, arXiv 1608.04644): ``|d|^2 + c * max(z_y - max z_i, 0)``, c by bisection.

    Pixels are kept in [0,1] by projection, the first of the paper's three ways (section V-B). Its choice, the change of
    variables to ``atanh(2x - 1)``, hardly moves pixels that are black or white.

    Args:
        steps: steps of Adam for each c.
        searches: values of c, sample by sample.
        lr: Adam's first learning rate, of pixels in [0,1]; it falls to a thousandth along a cosine.
        first: the first c.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    steps: int = 100
    searches: int = 6
    lr: float = 0.01
    first: float = 0.1
    name: str = "cw"

    def depends_on(self) -> dict[str, str]:
        """Return how pixels are kept in [0,1]: outcomes by the change of variables are not this attack's."""
        return {"box": "projection"}

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Return the model passes per batch; one with a gradient counts twice."""
        return (2 * self.steps * self.searches + _BISECTIONS,)

    def minimal(self, model: nn.Module, batch: AttackBatch, norm: Norm = "l2") -> tuple[Tensor, Tensor]:
        """Return the nearest misclassified images found (B,3,H,W), and their L2 distances (B,)."""
        x, n = batch.x, len(batch)
        best, nearest = x.clone(), torch.full((n,), math.inf, device=x.device)
        c = torch.full((n,), self.first, device=x.device)
        low, high = torch.zeros_like(c), torch.full_like(c, math.inf)
        for _ in range(self.searches):
            images, distances = self._descend(model, batch, c)
            closer = distances < nearest
            best, nearest = torch.where(_wide(closer), images, best), torch.where(closer, distances, nearest)
            fooled = distances.isfinite()
            low, high = torch.where(fooled, low, c), torch.where(fooled, torch.minimum(high, c), high)
            c = torch.where(high.isinf(), 10 * c, (low + high) / 2)
        best = drawn_in(model, best, x, batch.labels)
        return best, torch.where(nearest.isinf(), nearest, ThreatModel(1.0, "l2").distance(best, x))

    def _descend(self, model: nn.Module, batch: AttackBatch, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest fooling images for these weights (B,), and their distances; infinite where there is none."""
        x = batch.x
        images = x.clone().requires_grad_()
        adam = torch.optim.Adam([images], lr=self.lr)
        best, nearest = x.clone(), torch.full_like(c, math.inf)
        for step in range(self.steps):
            adam.param_groups[0]["lr"] = self.lr * _cosine(step / self.steps)
            with torch.enable_grad():
                gap, squared = -margin(model(images), batch.labels), (images - x).flatten(1).square().sum(dim=1)
                (images.grad,) = torch.autograd.grad((squared + c * gap.clamp_min(0)).sum(), images)
            lengths = squared.detach().sqrt()
            closer = (gap.detach() < 0) & (lengths < nearest)
            best = torch.where(_wide(closer), images.detach(), best)
            nearest = torch.where(closer, lengths, nearest)
            adam.step()
            with torch.no_grad():
                images.clamp_(0, 1)
        return best, nearest


def drawn_in(model: nn.Module, found: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """Return images on the segments from ``x`` to ``found`` (B,3,H,W), as near to ``x`` as bisection finds them fooling."""
    low, high = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        with torch.no_grad():
            fooled = model(x + _wide(middle) * (found - x)).argmax(dim=-1) != labels
        low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
    # Where it is not moved it is taken as it was, to the last bit.
    return torch.where(_wide(high < 1), x + _wide(high) * (found - x), found)


def _cosine(part: float) -> float:
    """Fall from 1 to a thousandth as ``part`` goes from 0 to 1."""
    return 1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * part)) / 2


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
