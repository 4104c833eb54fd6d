"""Clean and adversarial prompt tuning of both branches, without a teacher: VLP and AdvVLP."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from apd.methods.base import Method, Step


class VLP(Method):
    """Vision-language prompting: independent tokens in both branches, tuned on clean images by ``CE(z(x), y)``."""

    summary: ClassVar[str] = "clean tuning of visual and text tokens, not robust"
    source: ClassVar[str] = "independent vision-language prompting (Khattak 2023)"
    adversarial: ClassVar[bool] = False

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        return {"clean_ce": step.cross_entropy(step.clean_logits())}


class AdvVLP(Method):
    """The same prompts tuned on adversarial images by ``CE(z(x'), y)``: adversarial prompt tuning without distillation."""

    summary: ClassVar[str] = "adversarial tuning of visual and text tokens without distillation: the control"
    source: ClassVar[str] = "AdvVLP (Zhou 2024), APT-VLI (Wang 2025)"

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        return {"adv_ce": step.cross_entropy(step.student.logits(x_adv))}
