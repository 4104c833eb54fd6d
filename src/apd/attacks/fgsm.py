"""One step from a random start: fast adversarial training (Wong 2020, arXiv 2001.03994, algorithm 3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from apd.attacks.base import Objective
from apd.attacks.pgd import PGD
from apd.threat import ThreatModel


@dataclass(frozen=True)
class FGSMRS:
    """FGSM-RS: a random start in the ball, one step of 1.25 eps, projected. For training; too weak to report.

    Args:
        step_size: length of the step as a fraction of eps.
    """

    step_size: float = 1.25

    def __call__(self, objective: Objective, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        """Adversarial images (B,3,H,W) for the images ``x`` in [0,1]; ``seeds`` (B,) int64, one a sample."""
        return PGD(steps=1, step_size=self.step_size)(objective, x, threat, seeds)
