"""CoAPT (NeurIPS 2025), its prompts alone: held near the untouched CLIP, and clean near adversarial predictions.

::

    inner  x' = argmax_{|x'-x| <= eps} CE(z(x'), y)
    outer  8 * [ 2 - exp(-beta * (||f(x') - f_0(x)||^2 + mean_c ||t_c - t_0c||^2)) ]
           + D_2.5( p(x) || p(x') ) + CE(z(x'), y)
    with   D_a( p || q ) = log( sum_c p_c^a q_c^(1-a) ) / (a - 1)                                        (Renyi)

``f`` and ``t`` are the student's image and class features, ``f_0`` and ``t_0`` those of the original CLIP model with the
hand-written templates, all of unit length. Published are the form of the terms, the 8 and the order 2.5. This project's
reading: ``beta``, that ``f_0`` is of the clean image, that classes count by their mean, that both predictions are the
student's and that gradients run through both. The denoiser and the LoRA weights of the paper are left out; its class texts
are descriptive, which ``data.templates`` can set.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from apd.attacks.objectives import squared_distance
from apd.methods.base import Method, MethodSettings
from apd.methods.presets import pgd, tokens
from apd.methods.prompt_kinds import VISION_TO_TEXT
from apd.methods.step import Step
from apd.models.classifier import PromptedCLIP


class CoAPTSettings(MethodSettings):
    """Settings of CoAPT: 4 + 4 tokens, the text's mapped from the visual ones."""

    fixed: ClassVar[dict[str, Any]] = VISION_TO_TEXT
    defaults: ClassVar[dict[str, Any]] = {"text_tokens": 4, "visual_tokens": 4}
    # Epochs, weight decay and clipping are not known here, and stay this project's.
    published: ClassVar[dict[str, Any]] = {
        **tokens("text", 4, 9),
        **tokens("visual", 4, 9),
        "train.optimizer.name": "radam",
        "train.optimizer.lr": 0.00735,
        "train.batch_size": 64,
        **pgd("1/255", steps=2, step_size=1.0),
    }

    features: float = Field(8.0, ge=0, description="weight of the features' distance to the original CLIP model's")
    beta: float = Field(1.0, gt=0, description="how fast that distance saturates; not published")
    renyi: float = Field(1.0, ge=0, description="weight of D(p(x) || p(x'))")
    order: float = Field(2.5, gt=1, description="order of the Renyi divergence")


class CoAPT(Method):
    """Adversarial tuning of coupled prompts, anchored at the original features and at the clean prediction."""

    summary = "adversarial tuning of coupled prompts, held near the original CLIP's features and the clean prediction"
    source = "CoAPT (NeurIPS 2025), without denoiser and LoRA"
    Settings = CoAPTSettings
    settings: CoAPTSettings

    def __init__(self, settings: CoAPTSettings, zero_shot: PromptedCLIP, seed: int = 0) -> None:
        super().__init__(settings, zero_shot, seed)
        self.original = zero_shot

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        """Return the terms of the formula at the head of this page whose weight is not 0."""
        s = self.settings
        features = step.student.features(x_adv)
        z_adv = step.student.logits_from_features(features)
        terms = {"adv_ce": step.cross_entropy(z_adv)}
        if s.renyi:
            terms["adv_renyi"] = s.renyi * renyi(step.clean_logits(), z_adv, s.order).mean()
        if s.features:
            with torch.no_grad():
                known = self.original.bind()
                original = known.features(step.x)
            away = squared_distance(features, original)
            away = away + squared_distance(step.student.classes, known.classes).mean()
            # Not called adv_...: it is 8 at least, which would hide a collapse of the other two.
            terms["features"] = s.features * (2 - (-s.beta * away).exp()).mean()
        return terms


def renyi(p: Tensor, q: Tensor, order: float) -> Tensor:
    """Return ``log(sum_c p_c^a q_c^(1-a)) / (a - 1)`` of the softmax of logits ``p`` and ``q`` (B, C), per sample (B,)."""
    log_p, log_q = F.log_softmax(p, dim=-1), F.log_softmax(q, dim=-1)
    return torch.logsumexp(order * log_p + (1 - order) * log_q, dim=-1) / (order - 1)
