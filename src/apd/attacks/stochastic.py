"""Attacks on classifiers that give random answers: the gradient is averaged over their randomness (EoT)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from apd.attacks.evaluation import UNWATCHED, AttackBatch, EvaluationAttack, Found, Watch
from apd.attacks.objectives import margin_and_gradient
from apd.attacks.threat import ThreatModel
from apd.errors import InputError
from apd.util.seeds import own_random_numbers, sample_seeds


class Averaged(nn.Module):
    """The mean of a classifier's log-probabilities over several calls; wrap a stochastic one in it before any attack.

    Args:
        model: pixels (B,3,H,W) to logits (B,C).
        draws: calls.
    """

    def __init__(self, model: nn.Module, draws: int = 20) -> None:
        super().__init__()
        if draws < 1:
            raise InputError(f"Averaged needs at least one draw, got {draws}.")
        self.model, self.draws = model, draws

    def forward(self, x: Tensor) -> Tensor:
        """Return mean log-probabilities (B,C)."""
        total = self.model(x).log_softmax(dim=-1)
        for _ in range(self.draws - 1):
            total = total + self.model(x).log_softmax(dim=-1)
        mean: Tensor = total / self.draws
        return mean


@dataclass(frozen=True)
class EoT(EvaluationAttack):
    """PGD on the margin, whose gradient is averaged over draws (Expectation over Transformation, Athalye 2018, arXiv 1707.07397).

    Keeps the image of highest mean margin. The classifier draws from PyTorch's global generators, which are seeded here and left
    as they were; its draws depend on the batch.

    Args:
        draws: calls of the classifier per step.
        steps: steps of eps/10.
    """

    draws: int = 20
    steps: int = 40

    @property
    def name(self) -> str:  # type: ignore[override]
        """What it is called in a result."""
        return f"eot-{self.draws}"

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise InputError("eot-N needs at least one draw, such as eot-20.")

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Return the model passes per batch; one with a gradient counts twice."""
        return (2 * self.draws * (self.steps + 1),)

    def __call__(self, model: nn.Module, batch: AttackBatch, threat: ThreatModel, watch: Watch = UNWATCHED) -> Found:
        """Attack ``batch``."""
        watch.begin(self.name)
        averaged, x = Averaged(model, self.draws), batch.x
        here = threat.random_start(x, sample_seeds(batch.ids, batch.seed, "eot"))
        best, highest = x.clone(), torch.full((len(x),), -math.inf, device=x.device)
        with own_random_numbers(x.device):
            torch.manual_seed(batch.seed)
            for _ in range(self.steps + 1):
                values, gradient = margin_and_gradient(averaged, here, batch.labels)
                higher = values > highest
                best = torch.where(higher.view(-1, 1, 1, 1), here, best)
                highest = torch.where(higher, values, highest)
                here = threat.project(threat.ascend(here, gradient, 0.1 * threat.eps), x)
        return Found(best, [self.name] * len(batch))
