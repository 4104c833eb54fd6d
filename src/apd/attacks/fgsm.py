"""One step from a random start, for training only: FGSM-RS and N-FGSM; too weak to report."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from apd.attacks.base import TrainingAttack, check_numbers
from apd.attacks.objectives import Objective
from apd.attacks.pgd import PGD
from apd.attacks.threat import ThreatModel
from apd.errors import InputError


@dataclass(frozen=True)
class FGSMRS(TrainingAttack):
    """FGSM-RS: a random start in the ball, one step of 1.25 eps, projected (Wong 2020, arXiv 2001.03994, algorithm 3).

    Args:
        step_size: step length as a fraction of eps.
    """

    step_size: float = 1.25

    def __post_init__(self) -> None:
        check_numbers("fgsm-rs", above_0={"step_size": self.step_size})

    def __call__(self, objective: Objective, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        """Return adversarial images (B,3,H,W) for the images ``x`` in [0,1]; ``seeds`` (B,) int64, one per sample."""
        return PGD(steps=1, step_size=self.step_size)(objective, x, threat, seeds)


@dataclass(frozen=True)
class NFGSM(TrainingAttack):
    """N-FGSM: noise of twice the budget, one step of eps, and no projection (de Jorge 2022, arXiv 2202.01181, eq. 3).

    Keeping the noise guards one-step training against catastrophic overfitting. Images leave the ball, by at most
    ``noise`` times eps; they stay in [0,1].

    Args:
        step_size: step length as a fraction of eps.
        noise: radius of the noise as a multiple of eps.
    """

    step_size: float = 1.0
    noise: float = 2.0

    def __post_init__(self) -> None:
        check_numbers("n-fgsm", above_0={"step_size": self.step_size}, from_0={"noise": self.noise})

    @property
    def starts_at_clean(self) -> bool:
        """Without noise."""
        return self.noise == 0

    def check_threat(self, threat: ThreatModel) -> None:
        """Refuse noise beyond the range of pixels."""
        if threat.norm == "linf" and self.noise * threat.eps > 1:
            raise InputError(
                f"eps={threat.eps:g} is too large for n-fgsm, whose noise of {self.noise:g} times as much is more than the "
                "whole range of pixels; use pgd or fgsm-rs, or a smaller option noise."
            )

    def __call__(self, objective: Objective, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        """Return adversarial images (B,3,H,W) for the images ``x`` in [0,1]; ``seeds`` (B,) int64, one per sample.

        Raises:
            InputError: see `check_threat`.
        """
        self.check_threat(threat)
        noisy = replace(threat, eps=self.noise * threat.eps).random_start(x, seeds)
        with torch.enable_grad():
            noisy.requires_grad_()
            (gradient,) = torch.autograd.grad(objective(noisy).sum(), noisy)
        return threat.ascend(noisy.detach(), gradient, self.step_size * threat.eps).clamp(0.0, 1.0)
