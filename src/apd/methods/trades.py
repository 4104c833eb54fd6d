"""TRADES (Zhang et al., ICML 2019, eq. 5) for prompts in both branches.

::

    inner  x' = argmax_{|x'-x| <= eps} KL( p(x) || p(x') )
    outer  CE(z(x), y) + beta * KL( p(x) || p(x') )

Gradients run through both sides of the outer KL, as in the public code. The published ``beta`` of 6 is of whole networks
on CIFAR-10; a prompt form is not published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from torch import Tensor

from apd.attacks.base import Objective
from apd.attacks.objectives import kl_from_logits
from apd.losses import distillation
from apd.methods.base import Method, MethodSettings, Step
from apd.models.classifier import BoundCLIP

if TYPE_CHECKING:
    from apd.settings.train import AttackKind


class ConsistencySettings(MethodSettings):
    """Settings of methods whose attack and loss set the adversarial prediction against the clean one."""

    def flat_at_clean(self, kind: AttackKind) -> bool:
        return True


class Consistency(Method):
    """A method whose attack drives predictions away from the clean ones."""

    def inner(self, step: Step, attacked: BoundCLIP) -> Objective:
        """``KL(p(x) || p(x'))``; flat at x itself, so the attack needs its random start."""
        return Objective(attacked.logits, kl_from_logits, step.clean_logits().detach())


class TRADESSettings(ConsistencySettings):
    """Settings of TRADES."""

    beta: float = Field(6.0, ge=0, description="weight of KL(p(x) || p(x')), 1/lambda of the paper")


class TRADES(Consistency):
    """Clean accuracy, traded against the distance of clean and adversarial predictions."""

    summary = "clean cross-entropy plus consistency of clean and adversarial predictions"
    source = "TRADES (Zhang et al., ICML 2019), in prompt form"
    Settings = TRADESSettings
    settings: TRADESSettings

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        z, z_adv = step.clean_logits(), step.student.logits(x_adv)
        return {"clean_ce": step.cross_entropy(z), "adv_kl": self.settings.beta * distillation(z, z_adv)}
