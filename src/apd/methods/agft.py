"""AGFT (CVPR 2026) for prompts in both branches: soft labels alone, softer for the teacher than for the student.

::

    label  s = softmax(72 * cos_0(x))
    inner  x' = argmax_{|x'-x| <= eps} KL( s || softmax(180 * cos(x')) )
    outer  KL( s || softmax(180 * cos(x')) )

``cos`` are the student's cosines of image and class features, ``cos_0`` those of the original CLIP model with its
hand-written templates. No label is looked at. The published method tunes the image tower's weights with class features that
stay, and minimises the cross-entropy to s, which has the same gradient; the scales are those of its public code (180, and
0.4 of it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from apd.attacks.objectives import Objective, kl_to_probabilities
from apd.data.batch import Batch
from apd.methods.base import Climbed, Method, MethodSettings, refuse_smoothing
from apd.methods.step import PerObject, Step
from apd.models.classifier import BoundCLIP, PromptedCLIP

if TYPE_CHECKING:
    from apd.settings.train import TrainSettings


class AGFTSettings(MethodSettings):
    """Settings of AGFT."""

    teacher_scale: float = Field(72.0, gt=0, description="what the original CLIP model's cosines are multiplied by")
    student_scale: float = Field(180.0, gt=0, description="what the student's cosines are multiplied by in training")

    @property
    def climbs(self) -> Climbed:
        """See `MethodSettings.climbs`."""
        return "soft labels"

    def check_training(self, train: TrainSettings) -> None:
        """Check that these settings of training fit the method; see `MethodSettings.check_training`."""
        super().check_training(train)
        refuse_smoothing(train, "agft")
        if train.attack.loss != "method":
            raise ValueError(
                f"train.attack.loss={train.attack.loss} would replace the soft label of agft's attack, which its loss is about; "
                "leave it out"
            )


class AGFT(Method):
    """Adversarial predictions pulled to the original CLIP's softened clean ones."""

    summary = "adversarial tuning towards the original CLIP's softened clean prediction, without labels"
    source = "AGFT (CVPR 2026), in prompt form"
    Settings = AGFTSettings
    settings: AGFTSettings
    pseudo_labels = False

    def __init__(self, settings: AGFTSettings, zero_shot: PromptedCLIP, seed: int = 0) -> None:
        super().__init__(settings, zero_shot, seed)
        scale = settings.teacher_scale
        self._label = PerObject[Batch, Tensor](lambda batch: _soft_label(zero_shot, batch, scale))

    def inner(self, step: Step, attacked: BoundCLIP) -> Objective:
        """``KL(s || softmax(180 * cos(x')))``, as in the loss."""
        return Objective(lambda x: self._sharp(attacked, x), kl_to_probabilities, self._label(step.batch))

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        """Return the terms of the formula at the head of this page."""
        return {"adv_kl": kl_to_probabilities(self._sharp(step.student, x_adv), self._label(step.batch)).mean()}

    def _sharp(self, student: BoundCLIP, x: Tensor) -> Tensor:
        return student.logits(x) * (self.settings.student_scale / student.encoder.info.logit_scale)


@torch.no_grad()
def _soft_label(original: PromptedCLIP, batch: Batch, scale: float) -> Tensor:
    """Return the probabilities (B, C) that the model without prompts gives to the clean images."""
    return (original.bind().logits(batch.x) * (scale / original.encoder.info.logit_scale)).softmax(dim=-1)
