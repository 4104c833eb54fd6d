"""Tuning on clean images by ``CE(z(x), y)``: CoOp, VPT, VLP and MaPLe differ in their prompts alone. None is robust.

| method | prompts |
|---|---|
| CoOp  | text context at the embedding, one for all classes or one for each (``prompts.class_specific``) |
| VPT   | visual tokens, at the embedding (shallow) or at every block (deep) |
| VLP   | both, independent of each other |
| MaPLe | both; one linear map per block makes the visual tokens from the text tokens |
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from apd.methods.base import Method, MethodSettings
from apd.methods.presets import dassl, tokens
from apd.methods.prompt_kinds import TEXT_ONLY, TEXT_TO_VISION, VISUAL_ONLY
from apd.methods.step import Step


class CoOpSettings(MethodSettings):
    """Text context, at the embedding alone unless ``prompts.text_depth`` says otherwise."""

    fixed: ClassVar[dict[str, Any]] = TEXT_ONLY
    defaults: ClassVar[dict[str, Any]] = {"text_depth": 1}
    # 16 shots; the paper trains 100 epochs for 2 and 4 shots, and 50 for 1 shot and for ImageNet.
    published: ClassVar[dict[str, Any]] = {
        **tokens("text", 16, 1),
        "method.prompts.words": "",
        **dassl(lr=0.002, epochs=200, batch=32),
    }


class VPTSettings(MethodSettings):
    """Visual tokens; the texts are the templates."""

    fixed: ClassVar[dict[str, Any]] = VISUAL_ONLY
    # As published for CLIP with MaPLe; VPT itself is of supervised backbones.
    published: ClassVar[dict[str, Any]] = {**tokens("visual", 8, "all"), **dassl(lr=0.0025, epochs=5, batch=4)}


class VLPSettings(MethodSettings):
    """Both branches; by default the prompts of APD, whose clean-tuned teacher this is."""

    published: ClassVar[dict[str, Any]] = {
        **tokens("text", 2, "all"),
        **tokens("visual", 2, "all"),
        "method.prompts.deep_words": False,
        **dassl(lr=0.0035, epochs=5, batch=4),
    }


class MaPLeSettings(MethodSettings):
    """Coupled prompts."""

    fixed: ClassVar[dict[str, Any]] = TEXT_TO_VISION
    defaults: ClassVar[dict[str, Any]] = {"text_tokens": 2, "visual_tokens": 2}
    published: ClassVar[dict[str, Any]] = {
        **tokens("text", 2, 9),
        **tokens("visual", 2, 9),
        "method.prompts.deep_words": False,
        **dassl(lr=0.0035, epochs=5, batch=4),
    }


class CleanTuning(Method):
    """``CE(z(x), y)``."""

    adversarial = False

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        """Return the terms of the formula at the head of this page."""
        return {"clean_ce": step.cross_entropy(step.clean_logits())}


class CoOp(CleanTuning):
    """Context optimisation."""

    summary = "clean tuning of the text context, not robust"
    source = "CoOp (Zhou et al., IJCV 2022)"
    Settings = CoOpSettings


class VPT(CleanTuning):
    """Visual prompt tuning."""

    summary = "clean tuning of visual tokens, not robust"
    source = "VPT (Jia et al., ECCV 2022)"
    Settings = VPTSettings


class VLP(CleanTuning):
    """Vision-language prompting: independent tokens in both branches."""

    summary = "clean tuning of visual and text tokens, not robust"
    source = "independent vision-language prompting (Khattak et al., CVPR 2023)"
    Settings = VLPSettings


class MaPLe(CleanTuning):
    """Multi-modal prompt learning."""

    summary = "clean tuning of text tokens that are mapped to visual ones, not robust"
    source = "MaPLe (Khattak et al., CVPR 2023)"
    Settings = MaPLeSettings
