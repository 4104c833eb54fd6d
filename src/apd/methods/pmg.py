"""Pre-trained model guided tuning (PMG-AFT, Wang et al., CVPR 2024) for prompts in both branches.

::

    inner  x' = argmax_{|x'-x| <= eps} CE(z(x'), y)
    outer  CE(z(x'), y) + alpha * KL( p(x') || p_0(x') ) + beta * KL( p(x') || p(x) )      kl: adversarial-first
           CE(z(x'), y) + alpha * KL( p_0(x') || p(x') ) + beta * KL( p(x) || p(x') )      kl: adversarial-second

``p_0`` is the original CLIP model, with its hand-written templates, on the same adversarial image. The published method tunes
the image tower's weights. Its public code of April 2024 has p(x') first in both divergences, that since 29 May 2024 second; all
tables of this project are with the first. It compares cosines without the logit scale and sums over the batch; here ``p``
carries the logit scale, as everywhere in this package, and the terms are means.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from apd.attacks.objectives import kl
from apd.methods.base import Method, MethodSettings
from apd.methods.step import Step
from apd.models.classifier import PromptedCLIP


class PMGSettings(MethodSettings):
    """Settings of PMG."""

    class_contexts: ClassVar[bool] = True
    unrecorded: ClassVar[dict[str, Any]] = {"kl": "adversarial-first"}

    alpha: float = Field(1.0, ge=0, description="weight of KL(p(x') || p_0(x')), to the original CLIP model")
    beta: float = Field(1.0, ge=0, description="weight of KL(p(x') || p(x)), to the clean prediction")
    kl: Literal["adversarial-first", "adversarial-second"] = Field(
        "adversarial-first",
        description="where p(x') stands in both divergences; adversarial-second: KL(p_0(x') || p(x')) and KL(p(x) || p(x')), as "
        "in the authors' code since 29 May 2024",
    )


class PMG(Method):
    """Adversarial tuning, held near the original CLIP and near the clean prediction."""

    summary = "adversarial tuning guided by the original CLIP on the adversarial image"
    source = "PMG-AFT (Wang et al., CVPR 2024), in prompt form"
    Settings = PMGSettings
    settings: PMGSettings

    def __init__(self, settings: PMGSettings, zero_shot: PromptedCLIP, seed: int = 0) -> None:
        super().__init__(settings, zero_shot, seed)
        self.original = zero_shot

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        """Return the terms of the formula at the head of this page."""
        z_adv = step.student.logits(x_adv)
        with torch.no_grad():
            z_original = self.original.bind().logits(x_adv)
        return {
            "adv_ce": step.cross_entropy(z_adv),
            "adv_kl_original": self.settings.alpha * self._divergence(z_adv, z_original),
            "adv_kl_clean": self.settings.beta * self._divergence(z_adv, step.clean_logits()),
        }

    def _divergence(self, z_adv: Tensor, other: Tensor) -> Tensor:
        """Return the mean KL between the predictions of logits (B, C) on x' and others, in the order that is set."""
        first = self.settings.kl == "adversarial-first"
        return (kl(p=z_adv, q=other) if first else kl(p=other, q=z_adv)).mean()
