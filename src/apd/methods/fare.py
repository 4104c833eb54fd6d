"""FARE (Schlarmann et al., ICML 2024) for visual tokens: unsupervised, labels and texts are not looked at.

::

    inner  x' = argmax_{|x'-x| <= eps} || f(x') - f_0(x) ||^2
    outer  || f(x') - f_0(x) ||^2

``f`` are the student's image features and ``f_0`` those of the original CLIP model, neither of unit length. The published method
tunes the image tower's weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from apd.attacks.objectives import Objective, squared_distance
from apd.data.batch import Batch
from apd.methods.base import Climbed, Method, MethodSettings, refuse_smoothing
from apd.methods.prompt_kinds import VISUAL_ONLY
from apd.methods.step import PerObject, Step
from apd.models.classifier import BoundCLIP, PromptedCLIP

if TYPE_CHECKING:
    from apd.settings.train import TrainSettings


class FARESettings(MethodSettings):
    """Visual tokens; the texts are the templates."""

    fixed: ClassVar[dict[str, Any]] = VISUAL_ONLY

    @property
    def climbs(self) -> Climbed:
        """See `MethodSettings.climbs`."""
        return "answers"

    def check_training(self, train: TrainSettings) -> None:
        """Check that these settings of training fit the method; see `MethodSettings.check_training`."""
        super().check_training(train)
        refuse_smoothing(train, "fare")


class FARE(Method):
    """Adversarial image features pulled back to the original clean ones."""

    summary = "visual tokens that keep adversarial image features near the original clean ones, without labels"
    source = "FARE (Schlarmann et al., ICML 2024), in prompt form"
    Settings = FARESettings
    pseudo_labels = False

    def __init__(self, settings: FARESettings, zero_shot: PromptedCLIP, seed: int = 0) -> None:
        super().__init__(settings, zero_shot, seed)
        self._target = PerObject[Batch, Tensor](lambda batch: _features(zero_shot, batch))

    def inner(self, step: Step, attacked: BoundCLIP) -> Objective:
        """The squared distance of features, as in the loss."""
        return Objective(attacked.embed, squared_distance, self._target(step.batch))

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        """Return the terms of the formula at the head of this page."""
        return {"adv_features": squared_distance(step.student.embed(x_adv), self._target(step.batch)).mean()}


@torch.no_grad()
def _features(original: PromptedCLIP, batch: Batch) -> Tensor:
    """Return the features of the clean images by the model without prompts."""
    return original.bind().embed(batch.x)
