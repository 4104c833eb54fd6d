"""Projected gradient descent (Madry 2018, arXiv 1706.06083), over any objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from apd.attacks.base import Objective
from apd.attacks.threat import ThreatModel
from apd.errors import InputError

Fooled = Callable[[Tensor, Tensor], Tensor]
"""Outputs (B, ...) and targets (B, ...) to booleans (B,): which samples need no further attack."""


@dataclass(frozen=True)
class PGD:
    """``x <- project(x + step * steepest ascent of the objective)``, from a random point of the ball.

    The gradient is taken with respect to the pixels only, and nothing in the loop waits for the device.

    Args:
        steps: of gradient ascent.
        step_size: length of a step as a fraction of eps.
        restarts: runs from different random starts; the image of highest objective is kept, sample by sample.
        random_start: start at a random point of the ball rather than at the clean image.

    Raises:
        InputError: no steps, no restarts, several restarts from one start, or a step that is not positive.

    Example:
        >>> import torch
        >>> from apd.attacks import PGD, Objective, cross_entropy
        >>> from apd.attacks.threat import ThreatModel
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> x, labels = torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 0, 1, 0])
        >>> objective = Objective(model, cross_entropy, labels)
        >>> x_adv = PGD(steps=10)(objective, x, ThreatModel(8 / 255), seeds=torch.arange(5))
        >>> bool((objective(x_adv) >= objective(x)).all())
        True
    """

    steps: int = 10
    step_size: float = 0.25
    restarts: int = 1
    random_start: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.step_size <= 0:
            raise InputError(
                f"PGD needs steps >= 1, restarts >= 1 and step_size > 0, got {self.steps}, {self.restarts}, "
                f"{self.step_size}."
            )
        if self.restarts > 1 and not self.random_start:
            raise InputError(f"PGD with restarts={self.restarts} needs random_start; every run would be the same.")

    def __call__(self, objective: Objective, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        """Adversarial images (B,3,H,W) for the images ``x`` in [0,1]; ``seeds`` (B,) int64, one a sample."""
        best = self._climb(objective, x, threat, seeds)
        if self.restarts == 1:
            return best
        with torch.no_grad():
            value = objective(best)
            for restart in range(1, self.restarts):
                other = self._climb(objective, x, threat, seeds + restart)
                other_value = objective(other)
                better = other_value > value
                best = torch.where(better.view(-1, *[1] * (x.dim() - 1)), other, best)
                value = torch.where(better, other_value, value)
        return best

    def start(self, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        """Where the first step is taken from (B,3,H,W)."""
        return threat.random_start(x, seeds) if self.random_start else x.clone()

    def _climb(self, objective: Objective, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        x_adv = self.start(x, threat, seeds)
        for _ in range(self.steps):
            with torch.enable_grad():
                x_adv.requires_grad_()
                (gradient,) = torch.autograd.grad(objective(x_adv).sum(), x_adv)
            x_adv = self.step(x_adv.detach(), gradient, x, threat)
        return x_adv

    def step(self, x_adv: Tensor, gradient: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
        """One projected step along ``gradient`` from ``x_adv``, around the clean images ``x`` (all (B,3,H,W))."""
        return threat.project(threat.ascend(x_adv, gradient, self.step_size * threat.eps), x)

    def search(self, objective: Objective, x: Tensor, threat: ThreatModel, seeds: Tensor, fooled: Fooled) -> Tensor:
        """The same attack for evaluation: a sample leaves at the first image that fools, and the batch shrinks.

        A sample counts as fooled by any point of the path, the start and the last one included, so this finds at least
        what `__call__` finds.

        Args:
            objective: what is maximised.
            x: clean images (B,3,H,W) in [0,1].
            threat: the ball.
            seeds: (B,) int64, one a sample.
            fooled: outputs and targets to booleans (B,).

        Returns:
            Images (B,3,H,W): the first that fools, else the last of the last restart.
        """
        found = x.clone()
        standing = torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            if len(standing) == 0:
                break
            start = self.start(x[standing], threat, seeds[standing.to(seeds.device)] + restart)
            standing = self._search_from(start, standing, objective, x, threat, fooled, found)
        return found

    def _search_from(
        self,
        x_adv: Tensor,
        standing: Tensor,
        objective: Objective,
        x: Tensor,
        threat: ThreatModel,
        fooled: Fooled,
        found: Tensor,
    ) -> Tensor:
        """Climb from ``x_adv``, write images into ``found``, return the indices that still stand."""
        for step in range(self.steps + 1):
            target = objective.target[standing]
            with torch.enable_grad():
                x_adv.requires_grad_(step < self.steps)
                outputs = objective.forward(x_adv)
            found[standing] = x_adv.detach()
            keep = ~fooled(outputs.detach(), target)
            standing = standing[keep]
            if step == self.steps or len(standing) == 0:
                break
            (gradient,) = torch.autograd.grad(objective.loss(outputs, target)[keep].sum(), x_adv)
            x_adv = self.step(x_adv.detach()[keep], gradient[keep], x[standing], threat)
        return standing
