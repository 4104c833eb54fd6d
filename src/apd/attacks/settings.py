"""The section ``train.attack``: which attack makes training images adversarial."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from apd.attacks.base import TrainingAttack
from apd.attacks.objectives import LOSSES
from apd.attacks.training import TRAINING_ATTACKS
from apd.util.section import RECORDED, GrowingSection
from apd.util.text import one_line, short

ELSEWHERE = "start elsewhere (train.attack.random_start=true; n-fgsm: the option noise above 0)"
"""What to do about an attack that starts where its objective has no gradient."""


class AttackSettings(GrowingSection):
    """The attack that makes the training images adversarial."""

    unrecorded: ClassVar[dict[str, Any]] = {"options": {}}

    kind: str = Field(
        "pgd",
        description="pgd; one step: fgsm-rs (Wong 2020) or n-fgsm (de Jorge 2022); no pass of its own: free (Shafahi 2019) "
        "or carried from epoch to epoch (Zheng 2020); noise, for certified accuracy (Cohen 2019); or an attack of your own, as "
        "package.module:Class",
    )
    steps: int = Field(2, ge=1, description="steps of pgd")
    step_size: float = Field(1.0, gt=0, description="step of pgd, free and carried as a fraction of eps")
    random_start: bool = Field(True, description="start at a random point of the ball; fgsm-rs and n-fgsm always do")
    replays: int = Field(4, ge=1, description="free: optimiser steps on a batch, one after the other")
    loss: str = Field(
        "method",
        description="maximised instead of a method's cross-entropy: ce, margin, dlr, kl (to the clean answer), or a function "
        "of your own of logits and labels, as package.module:function",
    )
    stop_margin: float | None = Field(
        None,
        allow_inf_nan=True,
        description="pgd: samples misclassified by more than this (logits) leave the attack; null: none (Zhang 2020)",
    )
    options: dict[str, Any] = Field(
        {}, description="what the constructor of fgsm-rs, n-fgsm, noise or an attack of your own takes"
    )

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, value: str, info: ValidationInfo) -> str:
        if info.context != RECORDED:
            TRAINING_ATTACKS.find(value)
        return value

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, value: str, info: ValidationInfo) -> str:
        if value != "method" and info.context != RECORDED:
            LOSSES.find(value)
        return value

    @model_validator(mode="after")
    def _fits_kind(self, info: ValidationInfo) -> AttackSettings:
        if info.context == RECORDED:
            return self
        if self.stop_margin is not None and (self.kind != "pgd" or self.loss == "kl"):
            raise ValueError("train.attack.stop_margin needs kind=pgd and a loss on labels")
        if self.options and not self.attack_class.takes_options():
            raise ValueError(
                f"train.attack.options have no effect with kind={self.kind}, whose settings stand beside kind"
            )
        if self.attack_class.takes_options():
            self._check_options()
        if self.attack_class.moves_with_prompts and self.loss != "method":
            raise ValueError(
                f"train.attack.loss has no effect with kind={self.kind}: pixels climb the method's own loss"
            )
        if self.loss == "kl" and (start := self.clean_start):
            raise ValueError(
                f"train.attack.loss=kl has no gradient at the clean image, where {start} starts; {ELSEWHERE}"
            )
        return self

    def _check_options(self) -> None:
        try:
            self.attack_class.from_settings(self)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"train.attack.options={short(self.options)} do not make a {self.kind} ({one_line(error)})"
            ) from error

    @property
    def clean_start(self) -> str | None:
        """The setting by which the attack starts at the clean image itself; None if it starts elsewhere."""
        if not self.attack_class.from_settings(self).starts_at_clean:
            return None
        return (
            f"train.attack.options={short(self.options)}"
            if self.attack_class.takes_options()
            else "train.attack.random_start=false"
        )

    @property
    def attack_class(self) -> type[TrainingAttack]:
        """The class behind ``kind``."""
        return TRAINING_ATTACKS.find(self.kind)
