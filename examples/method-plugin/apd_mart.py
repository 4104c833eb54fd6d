"""MART (Wang et al., ICLR 2020) for prompts: samples that are wrong already count more.

::

    inner  x' = argmax_{|x'-x| <= eps} CE(z(x'), y)
    outer  -log p_y(x') - log(1 - max_{k != y} p_k(x')) + beta * (1 - p_y(x)) * KL( p(x) || p(x') )
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from apd.losses import kl_per_sample
from apd.methods import Method, MethodSettings, Step


class MARTSettings(MethodSettings):
    """Settings of MART."""

    beta: float = Field(6.0, ge=0, description="weight of the consistency term")


class MART(Method):
    """Misclassification-aware adversarial tuning."""

    summary = "adversarial tuning that minds samples which are wrong already"
    source = "MART (Wang et al., ICLR 2020), in prompt form"
    Settings = MARTSettings
    settings: MARTSettings

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        z, z_adv = step.clean_logits(), step.student.logits(x_adv)
        labels = step.labels[:, None]
        others = z_adv.softmax(dim=-1).scatter(1, labels, 0.0).amax(dim=-1)
        right = z.softmax(dim=-1).gather(1, labels).squeeze(1)
        return {
            "adv_ce": step.cross_entropy(z_adv),
            "adv_margin": -(1.0001 - others).log().mean(),
            "adv_kl": self.settings.beta * ((1 - right) * kl_per_sample(z, z_adv)).mean(),
        }
