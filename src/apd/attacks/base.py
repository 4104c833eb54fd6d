"""What every attack shares: the objective it maximises, and the form it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from apd.threat import ThreatModel


@dataclass(frozen=True)
class Objective:
    """What an attack maximises: ``loss(forward(x), target)``, one value a sample.

    Args:
        forward: pixels (B,3,H,W) in [0,1] to outputs (B,...): logits, or features.
        loss: outputs and targets to a loss a sample (B,).
        target: (B,...), what the loss compares with: labels, soft labels, clean features.
    """

    forward: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    target: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Loss a sample (B,) at the images ``x`` (B,3,H,W)."""
        return self.loss(self.forward(x), self.target)

    def select(self, index: Tensor) -> Objective:
        """The same objective for the samples at ``index`` only."""
        return Objective(self.forward, self.loss, self.target[index])


class Attack(Protocol):
    """An attack finds, within the threat model, images of high objective."""

    def __call__(self, objective: Objective, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        """Adversarial images (B,3,H,W) for the images ``x`` in [0,1]; ``seeds`` (B,) int64, one a sample."""
        ...
