"""Gaussian noise in place of an attack, for classifiers that are to be certified by randomised smoothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from apd.attacks.base import TrainingAttack, check_numbers
from apd.attacks.objectives import Objective
from apd.attacks.pgd import PGD
from apd.attacks.threat import ThreatModel


@dataclass(frozen=True)
class Noise(TrainingAttack):
    """Training images under Gaussian noise (Cohen 2019, arXiv 1902.02918), after a few steps of ascent if asked (SmoothAdv).

    Noise is not clipped to [0,1], as it is not when a classifier is certified. With ``steps``, the image first climbs the
    objective under this noise within the threat model, ``train.norm=l2`` and ``train.eps`` (Salman 2019, arXiv 1906.04584, with
    one draw of noise per image); without, the threat model plays no part.

    Args:
        sigma: standard deviation, in [0,1] pixel units.
        steps: steps of ascent; 0: noise alone.
        step_size: length of a step as a fraction of eps.

    Raises:
        InputError: a sigma or a length that is not above 0, or a number of steps that is not whole.
    """

    sigma: float = 0.25
    steps: int = 0
    step_size: float = 0.5

    def __post_init__(self) -> None:
        check_numbers("noise", above_0={"sigma": self.sigma, "step_size": self.step_size}, whole={"steps": self.steps})

    @property
    def passes(self) -> int:
        """One forward and backward pass per step."""
        return self.steps

    @property
    def needs_budget(self) -> bool:
        """Not at all: the noise has a deviation of its own, with an ascent before it or without."""
        return False

    def __call__(self, objective: Objective, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        """Return noisy images (B,3,H,W), which may leave [0,1], for the images ``x``; ``seeds`` (B,) int64, one per sample."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
        draws = [torch.randn(x.shape[1:], generator=generator) for generator in generators]
        noise = self.sigma * torch.stack(draws).to(x)
        if not self.steps or threat.eps == 0:
            return x + noise
        under_noise = replace(objective, forward=lambda images: objective.forward(images + noise))
        climb = PGD(self.steps, self.step_size, random_start=False)
        return climb(under_noise, x, threat, seeds) + noise
