"""Few-shot adversarial prompt learning (FAP, Zhou et al., NeurIPS 2024): coupled prompts, one loss for clean and adversarial.

::

    inner  x' = argmax_{|x'-x| <= eps} KL( p(x) || p(x') )
    outer  CE(z(x), y) + lambda * mean_i [ (cos(f_i, f'_i) + 1) * KL( p(x_i) || p(x'_i) ) ]

``p`` is the softmax of the student's logits, ``f`` and ``f'`` its image features of x and x'. Gradients run through both
sides of the KL, as in the public code, and through the cosine. That the cosine weighs each sample's own KL, rather than the
batch's mean, is this project's reading.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import ConfigDict, Field
from torch import Tensor

from apd.attacks.base import Objective
from apd.attacks.objectives import kl_from_logits
from apd.classifier import BoundCLIP, PromptedCLIP
from apd.losses import cross_entropy, kl_per_sample
from apd.methods.base import Method, MethodSettings, Step
from apd.prompts import Coupling, Depth, PromptSpec


class FAPPrompts(PromptSpec):
    """The published prompts: 2 + 2 tokens in the first 9 blocks, the text's mapped from the visual ones.

    A tower of fewer than 9 blocks is refused, not silently prompted less deep; set both depths to ``all`` there.
    """

    # A plain PromptSpec is taken too, as it is.
    model_config = ConfigDict(from_attributes=True)

    text_tokens: int = Field(2, ge=0, description="text tokens, as many as visual ones")
    text_depth: Depth = Field(9, description="how many text blocks get tokens; all for a tower of fewer than 9")
    visual_tokens: int = Field(2, ge=0, description="visual tokens, appended behind the patches")
    visual_depth: Depth = Field(9, description="how many image blocks get tokens; all for a tower of fewer than 9")
    coupling: Coupling = Field("vision-to-text", description="the text tokens are a linear map of the visual ones")


class FAPSettings(MethodSettings):
    """Settings of FAP, at their published defaults."""

    prompts: FAPPrompts = FAPPrompts()
    weight: float = Field(1.5, ge=0, description="lambda: weight of (cos(f, f') + 1) * KL(p(x) || p(x'))")


class FAP(Method):
    """FAP: the attack drives predictions apart, the loss pulls them together, weighted by how close the features are."""

    summary: ClassVar[str] = "adversarial tuning of coupled prompts by consistency of clean and adversarial predictions"
    source: ClassVar[str] = "FAP (Zhou et al., NeurIPS 2024)"
    Settings: ClassVar[type[MethodSettings]] = FAPSettings

    def __init__(self, settings: FAPSettings, student: PromptedCLIP, seed: int = 0) -> None:
        super().__init__(settings, student, seed)
        self.weight = settings.weight

    def inner(self, step: Step, attacked: BoundCLIP) -> Objective:
        """``KL(p(x) || p(x'))``; flat at x itself, so the attack needs its random start."""
        return Objective(attacked.logits, kl_from_logits, step.clean_logits().detach())

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        """Clean cross-entropy and the weighted consistency term; the clean pass is the one the attack already used."""
        clean, adversarial = step.clean_features(), step.student.features(x_adv)
        closeness = F.cosine_similarity(clean, adversarial, dim=-1) + 1
        z, z_adv = step.clean_logits(), step.student.compare(adversarial)
        return {
            "clean_ce": cross_entropy(z, step.labels),
            "adv_kl": self.weight * (closeness * kl_per_sample(z, z_adv)).mean(),
        }
