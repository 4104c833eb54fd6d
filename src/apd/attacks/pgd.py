"""Projected gradient descent (Madry 2018, arXiv 1706.06083), over any objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from apd.attacks.base import TrainingAttack
from apd.attacks.objectives import Objective, margin
from apd.attacks.threat import ThreatModel
from apd.errors import InputError

if TYPE_CHECKING:
    from apd.attacks.settings import AttackSettings

Leave = Callable[[Tensor, Tensor], Tensor]
"""Outputs (B, ...) and targets (B, ...) to booleans (B,): which samples need no further attack."""


@dataclass(frozen=True)
class PGD(TrainingAttack):
    """``x <- project(x + step * steepest ascent of the objective)``, from a random point of the ball.

    The gradient is taken with respect to the pixels only. Without ``leave`` nothing in the loop waits for the device;
    with it, a sample keeps its first image that satisfies the predicate, and the batch shrinks: evaluation leaves at the
    first misclassification, friendly training (Zhang 2020, arXiv 2002.11242) at a margin.

    Args:
        steps: steps of gradient ascent.
        step_size: length of a step as a fraction of eps.
        random_start: start at a random point of the ball rather than at the clean image.
        leave: which samples are done; None for none.

    Raises:
        InputError: no steps, or a step that is not positive.

    Example:
        >>> import torch
        >>> from apd.attacks import PGD, Objective, ThreatModel, cross_entropy
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> x, labels = torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 0, 1, 0])
        >>> objective = Objective(model, cross_entropy, labels)
        >>> x_adv = PGD(steps=10)(objective, x, ThreatModel(8 / 255), seeds=torch.arange(5))
        >>> bool((objective(x_adv) >= objective(x)).all())
        True
    """

    steps: int = 10
    step_size: float = 0.25
    random_start: bool = True
    leave: Leave | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.step_size <= 0:
            raise InputError(f"PGD needs steps >= 1 and step_size > 0, got {self.steps} and {self.step_size}.")

    @classmethod
    def from_settings(cls, settings: AttackSettings) -> PGD:
        """Build the attack that the section ``train.attack`` describes."""
        leave = None if settings.stop_margin is None else beyond_margin(settings.stop_margin)
        return cls(settings.steps, settings.step_size, settings.random_start, leave)

    @property
    def starts_at_clean(self) -> bool:
        """Without a random start."""
        return not self.random_start

    @property
    def passes(self) -> int:
        """One forward and backward pass per step."""
        return self.steps

    def __call__(self, objective: Objective, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        """Return adversarial images (B,3,H,W) for the images ``x`` in [0,1]; ``seeds`` (B,) int64, one per sample."""
        found = self.start(x, threat, seeds)
        here, clean, part, active = found, x, objective, torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            with torch.enable_grad():
                outputs = part.forward(here.requires_grad_())
                values = part.of(outputs)
                if self.leave is not None:
                    going_on = ~self.leave(outputs.detach(), part.target)
                    active, values = active[going_on], values[going_on]
                    if len(active) == 0:
                        break
                (gradient,) = torch.autograd.grad(values.sum(), here)
            if self.leave is not None:
                here, gradient, clean, part = here[going_on], gradient[going_on], x[active], objective.select(active)
            here = self.step(here.detach(), gradient, clean, threat)
            found = here if self.leave is None else found.detach().index_copy(0, active, here)
        return found.detach()

    def start(self, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        """Return where the first step is taken from (B,3,H,W)."""
        return threat.random_start(x, seeds) if self.random_start else x.clone()

    def step(self, x_adv: Tensor, gradient: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
        """Take one projected step along ``gradient`` from ``x_adv``, around the clean images ``x`` (all (B,3,H,W))."""
        return threat.project(threat.ascend(x_adv, gradient, self.step_size * threat.eps), x)


def beyond_margin(limit: float) -> Leave:
    """Leave where a sample is misclassified by more than ``limit`` (logits, logit scale included).

    The published method lets a sample continue for ``tau`` steps after it is misclassified; here the margin says how far.
    """

    def leave(z: Tensor, labels: Tensor) -> Tensor:
        if labels.dim() != 1 or labels.is_floating_point():
            raise InputError(
                "train.attack.stop_margin needs an attack on labels, but this method's inner objective has none; "
                "set method.inner=ce where the method has that choice, or train.attack.stop_margin=null."
            )
        # Not ">": a margin that is not a number leaves, as it always did.
        return ~(margin(z, labels) <= limit)

    return leave
