"""Zero-shot CLIP (Radford 2021): nothing is learned; a class's feature is the mean over the data's templates.

A run of it holds no prompts, and is evaluated like any other. An ensemble is a longer list of templates
(``data.templates``).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from apd.methods.base import Method, MethodSettings
from apd.methods.prompt_kinds import VISUAL_ONLY
from apd.methods.step import Step


class ZeroShotSettings(MethodSettings):
    """No prompts."""

    fixed: ClassVar[dict[str, Any]] = {**VISUAL_ONLY, "visual_tokens": 0}


class ZeroShot(Method):
    """CLIP with its hand-written templates."""

    summary = "CLIP with its hand-written templates, nothing learned"
    source = "CLIP (Radford et al., ICML 2021)"
    Settings = ZeroShotSettings
    adversarial = False
    learns = False
    pseudo_labels = False

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        """Return the terms of the formula at the head of this page."""
        return {}
