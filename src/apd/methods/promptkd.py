"""PromptKD (Li et al., CVPR 2024): prompts tuned on the labelled images teach the student on all images. Not robust.

::

    teacher  CE(z_T(x), y) on the labelled images, then frozen
    student  tau^2 * KL( p_T(x) || p_S(x) ) on labelled and unlabelled images, with p = softmax(z / tau)

The student never sees a label. The published student is a smaller CLIP that borrows the teacher's class features through a
trained projection; here it has text tokens of its own, and its CLIP is the teacher's unless ``teacher_model`` names another,
or a run whose prompts are the teacher as they are.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from apd.attacks.objectives import kl
from apd.data.batch import Batch
from apd.errors import InputError
from apd.methods.base import Method, MethodSettings, Preparation, prompted
from apd.methods.step import PerObject, Step
from apd.methods.teachers import other_clip, tune_prompts
from apd.models.classifier import BoundCLIP, PromptedCLIP


class PromptKDSettings(MethodSettings):
    """Settings of PromptKD."""

    models: ClassVar[tuple[str, ...]] = ("teacher_model",)

    tau: float = Field(1.0, gt=0, description="temperature of the soft labels")
    teacher_model: str | None = Field(
        None,
        description="another CLIP whose prompts are tuned, or a run folder whose prompts are; null: the student's own",
    )

    def check_without_labels(self) -> None:
        """Check that a run has learned the teacher's prompts; see `MethodSettings.check_without_labels`."""
        if self.teacher_model is None:
            raise ValueError(
                "promptkd tunes its teacher on labels, of which there are none with data.shots=0; set method.teacher_model to a "
                "run folder, or ask for shots"
            )


class PromptKD(Method):
    """Distillation of clean-tuned prompts on images that need no label."""

    summary = "clean prompts that learn from tuned ones on labelled and unlabelled images, not robust"
    source = "PromptKD (Li et al., CVPR 2024), with a student that has text tokens"
    Settings = PromptKDSettings
    settings: PromptKDSettings
    adversarial = False
    pseudo_labels = False

    def __init__(self, settings: PromptKDSettings, zero_shot: PromptedCLIP, seed: int = 0) -> None:
        super().__init__(settings, zero_shot, seed)
        other = other_clip(zero_shot, settings.teacher_model)
        self._learned = other.prompts is not None
        # A seed of its own: a teacher that starts as the student's copy would teach it little at first.
        teacher = other if self._learned else prompted(other, settings.prompts, seed + 1)
        self.teacher = teacher.requires_grad_(False)
        bound = PerObject[PromptedCLIP, BoundCLIP](PromptedCLIP.bind_detached)
        self._known = PerObject[Batch, Tensor](lambda batch: bound(teacher).logits(batch.x))

    def prepare(self, before: Preparation) -> None:
        """Tune the teacher on the labelled images, unless a run has learned its prompts.

        Raises:
            InputError: no labelled images to tune it on.
        """
        if self._learned:
            return
        if not len(before.images):
            raise InputError(
                "promptkd tunes its teacher on labels, of which there are none with data.shots=0; set method.teacher_model to a "
                "run folder, or ask for shots."
            )
        tune_prompts(self.teacher, before)

    def labeller(self) -> PromptedCLIP:
        """Return the teacher, where a run has learned its prompts; prompts yet to be tuned know nothing."""
        return self.teacher if self._learned else super().labeller()

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        """Return the terms of the formula at the head of this page."""
        with torch.no_grad():
            known = self._known(step.batch)
        return {"clean_kl": kl(p=known, q=step.clean_logits(), tau=self.settings.tau).mean()}
