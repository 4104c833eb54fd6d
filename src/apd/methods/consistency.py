"""Consistency of clean and adversarial predictions: TRADES and FAP.

::

    inner   x' = argmax_{|x'-x| <= eps} KL( p(x) || p(x') )
    TRADES  CE(z(x), y) + beta * KL( p(x) || p(x') )                                    (Zhang et al., ICML 2019, eq. 5)
    FAP     CE(z(x), y) + lambda * mean_i [ (cos(f_i, f'_i) + 1) * KL( p(x_i) || p(x'_i) ) ]  (Zhou et al., NeurIPS 2024)

``p`` is the softmax of the student's logits, ``f`` and ``f'`` its image features of x and x'. Gradients run through both
sides of the outer KL, as in the public code of both, and through the cosine. FAP's cosine weighs each sample's own KL, as in
two public copies of its trainer (``torch.mean(kl_divs * cosine_sims)``). The published ``beta`` of 6 is for whole networks on
CIFAR-10; a prompt form of TRADES is not published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from apd.attacks.objectives import Objective, kl, kl_to_logits
from apd.methods.base import Climbed, Method, MethodSettings
from apd.methods.presets import dassl, pgd, tokens
from apd.methods.prompt_kinds import VISION_TO_TEXT
from apd.methods.step import Step
from apd.models.classifier import BoundCLIP

if TYPE_CHECKING:
    from apd.settings.train import TrainSettings


class ConsistencySettings(MethodSettings):
    """Settings of methods whose attack and loss set the adversarial prediction against the clean one."""

    @property
    def climbs(self) -> Climbed:
        """See `MethodSettings.climbs`."""
        return "answers"

    def zero_gradient_at_clean(self, train: TrainSettings) -> bool:
        """Whether what the training attack climbs has no gradient at the clean image itself."""
        return True


class Consistency(Method):
    """A method whose attack drives predictions away from the clean ones."""

    def inner(self, step: Step, attacked: BoundCLIP) -> Objective:
        """``KL(p(x) || p(x'))``; flat at x itself, so the attack needs its random start."""
        return Objective(attacked.logits, kl_to_logits, step.clean_logits().detach())


class TRADESSettings(ConsistencySettings):
    """Settings of TRADES."""

    class_contexts: ClassVar[bool] = True
    beta: float = Field(6.0, ge=0, description="weight of KL(p(x) || p(x')), 1/lambda of the paper")


class TRADES(Consistency):
    """Clean accuracy, traded against the distance of clean and adversarial predictions."""

    summary = "clean cross-entropy plus consistency of clean and adversarial predictions"
    source = "TRADES (Zhang et al., ICML 2019), in prompt form"
    Settings = TRADESSettings
    settings: TRADESSettings

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        """Return the terms of the formula at the head of this page."""
        z = step.clean_logits()
        terms = {"clean_ce": step.cross_entropy(z)}
        if self.settings.beta:
            terms["adv_kl"] = self.settings.beta * kl(p=z, q=step.student.logits(x_adv)).mean()
        return terms


class FAPSettings(ConsistencySettings):
    """Settings of FAP: 2 + 2 tokens, the text's mapped from the visual ones."""

    fixed: ClassVar[dict[str, Any]] = VISION_TO_TEXT
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
        clean, z = step.clean_features(), step.clean_logits()
        terms = {"clean_ce": step.cross_entropy(z)}
        if self.settings.weight:
            adversarial = step.student.features(x_adv)
            closeness = F.cosine_similarity(clean, adversarial, dim=-1) + 1
            z_adv = step.student.logits_from_features(adversarial)
            terms["adv_kl"] = self.settings.weight * (closeness * kl(p=z, q=z_adv)).mean()
        return terms
