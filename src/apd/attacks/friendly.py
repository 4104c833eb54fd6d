"""Friendly adversarial training: the attack stops, sample by sample, once it has won (Zhang 2020, arXiv 2002.11242)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from apd.attacks.base import Objective
from apd.attacks.objectives import margin
from apd.attacks.pgd import PGD
from apd.attacks.threat import ThreatModel
from apd.errors import InputError


@dataclass(frozen=True)
class FriendlyPGD:
    """PGD that a sample leaves where it is misclassified by more than ``margin``; the batch shrinks.

    The published method lets a sample go on for ``tau`` steps after it is misclassified; here a margin of the logits says
    how far it may go. Waits for the device once a step, to know who is left.

    Args:
        pgd: the attack; one restart.
        margin: ``max_{i != y} z_i - z_y`` at which a sample leaves, in logits (logit scale included).
    """

    pgd: PGD
    margin: float = 0.0

    def __call__(self, objective: Objective, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        """Adversarial images (B,3,H,W) for the images ``x`` in [0,1]; ``seeds`` (B,) int64, one a sample.

        Raises:
            InputError: an objective whose targets are no labels.
        """
        if objective.target.dim() != 1 or objective.target.is_floating_point():
            raise InputError(
                "train.attack.stop_margin needs an attack on labels, but this method's inner objective has none; "
                "set method.inner=ce where the method has that choice, or train.attack.stop_margin=null."
            )
        found = self.pgd.start(x, threat, seeds)
        standing = torch.arange(len(x), device=x.device)
        for _ in range(self.pgd.steps):
            here, part = found[standing], objective.select(standing)
            with torch.enable_grad():
                here.requires_grad_()
                outputs = part.forward(here)
                (gradient,) = torch.autograd.grad(part.loss(outputs, part.target).sum(), here)
            keep = margin(outputs.detach(), part.target) <= self.margin
            standing = standing[keep]
            if len(standing) == 0:
                break
            found[standing] = self.pgd.step(here.detach()[keep], gradient[keep], x[standing], threat)
        return found
