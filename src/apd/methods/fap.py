"""Few-shot adversarial prompt learning (FAP, Zhou et al., NeurIPS 2024): coupled prompts, one loss for clean and adversarial.

::

    inner  x' = argmax_{|x'-x| <= eps} KL( p(x) || p(x') )
    outer  CE(z(x), y) + lambda * mean_i [ (cos(f_i, f'_i) + 1) * KL( p(x_i) || p(x'_i) ) ]

``p`` is the softmax of the student's logits, ``f`` and ``f'`` its image features of x and x'. Gradients run through both
sides of the KL, as in the public code, and through the cosine. That the cosine weighs each sample's own KL, rather than the
batch's mean, is this project's reading.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from apd.losses import kl_per_sample
from apd.methods.base import Step
from apd.methods.presets import dassl, pgd, tokens
from apd.methods.trades import Consistency, ConsistencySettings


class FAPSettings(ConsistencySettings):
    """Settings of FAP: 2 + 2 tokens, the text's mapped from the visual ones."""

    fixed: ClassVar[dict[str, Any]] = {"coupling": "vision-to-text", "class_specific": False, "frame": 0.0}
    defaults: ClassVar[dict[str, Any]] = {"text_tokens": 2, "visual_tokens": 2}
    published: ClassVar[dict[str, Any]] = {
        **tokens("text", 2, 9),
        **tokens("visual", 2, 9),
        "method.prompts.deep_words": False,
        **dassl(lr=0.0035, epochs=10, batch=4),
        **pgd("1/255", steps=2, step_size=1.0),
    }

    weight: float = Field(1.5, ge=0, description="lambda: weight of (cos(f, f') + 1) * KL(p(x) || p(x'))")


class FAP(Consistency):
    """FAP: the attack drives predictions apart, the loss pulls them together, weighted by how close the features are."""

    summary = "adversarial tuning of coupled prompts by consistency of clean and adversarial predictions"
    source = "FAP (Zhou et al., NeurIPS 2024)"
    Settings = FAPSettings
    settings: FAPSettings

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        """Clean cross-entropy and the weighted consistency term; the clean pass is the one the attack already used."""
        clean, adversarial = step.clean_features(), step.student.features(x_adv)
        closeness = F.cosine_similarity(clean, adversarial, dim=-1) + 1
        z, z_adv = step.clean_logits(), step.student.compare(adversarial)
        return {
            "clean_ce": step.cross_entropy(z),
            "adv_kl": self.settings.weight * (closeness * kl_per_sample(z, z_adv)).mean(),
        }
