"""One training step as one module: class features once, attack, loss; gradients synchronise when it is wrapped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apd.attacks import FGSMRS, PGD, Attack
from apd.methods.base import Method, Step
from apd.threat import ThreatModel
from apd.training.settings import AttackSettings


def training_attack(settings: AttackSettings) -> Attack:
    """The attack that ``settings`` describe."""
    if settings.kind == "fgsm-rs":
        return FGSMRS()
    return PGD(steps=settings.steps, step_size=settings.step_size, random_start=settings.random_start)


class TrainStep(nn.Module):
    """From a batch to the method's loss terms.

    Class features are computed once, with their graph; the attack works on their detached values, and all that the
    loss needs again (clean features, the teacher's answers) is computed once a step.

    Args:
        method: whose student is trained.
        attack: of the training images; not run for methods that train on clean images.
        threat: the budget.
        bf16: run encoder passes under bfloat16 autocast; prompts, logits and gradients stay float32.
    """

    def __init__(self, method: Method, attack: Attack, threat: ThreatModel, bf16: bool = False) -> None:
        super().__init__()
        self.method, self.attack, self.threat, self.bf16 = method, attack, threat, bf16

    def forward(self, x: Tensor, labels: Tensor, seeds: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        """Named scalar terms; their sum is what to minimise.

        Args:
            x: images (B,3,S,S) in [0,1].
            labels: (B,) int64.
            seeds: (B,) int64, of the attack's random start.
            index: (B,) int64, the images' places in the training set.
        """
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            step = Step(x, labels, self.method.student.bind(), index=index)
            x_adv = x
            if self.method.adversarial:
                x_adv = self.attack(self.method.inner(step, step.student.detach()), x, self.threat, seeds).detach()
            return self.method.loss(step, x_adv)
