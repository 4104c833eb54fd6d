"""Adversarial tuning by cross-entropy, without distillation: the methods differ in their prompts alone.

::

    inner  x' = argmax_{|x'-x| <= eps} CE(z(x'), y)
    outer  (1 - clean) * CE(z(x'), y) + clean * CE(z(x), y)         clean = 0; 0.5 is half clean, half adversarial

| method | prompts |
|---|---|
| APT          | text context at the embedding, unified or class-specific (``prompts.class_specific``) |
| AdvVP        | visual tokens |
| AdvVP-pixels | a frame of pixels around the image, with or without visual tokens |
| AdvVLP       | visual and text tokens, independent: the control of APD, with the same prompts |
| AdvMaPLe     | both, the visual tokens a linear map of the text tokens |

APT is published on an adversarially trained image tower (TeCoA). On a plain CLIP text prompts keep almost nothing under an
attack on the whole model; never set that beside the paper's figures.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from apd.methods.base import Method, MethodSettings
from apd.methods.presets import dassl, pgd, tokens
from apd.methods.prompt_kinds import TEXT_ONLY, TEXT_TO_VISION, VISUAL_ONLY
from apd.methods.step import Step

# The public code of TAPT's authors (Wang 2025), for 16 shots of ImageNet.
_TAPT = {**dassl(lr=0.0035, epochs=100, batch=32), **pgd("1/255", steps=2, step_size=1.0)}
_TAPT_TEXT = {**tokens("text", 2, 9), "method.prompts.words": "a photo of a", "method.prompts.deep_words": False}


class AdversarialSettings(MethodSettings):
    """Settings of adversarial tuning."""

    clean: float = Field(0.0, ge=0, le=1, description="share of the loss that clean images have; 0.5: half and half")


class APTSettings(AdversarialSettings):
    """Text context, at the embedding alone unless ``prompts.text_depth`` says otherwise."""

    fixed: ClassVar[dict[str, Any]] = TEXT_ONLY
    defaults: ClassVar[dict[str, Any]] = {"text_depth": 1}
    published: ClassVar[dict[str, Any]] = {
        **tokens("text", 16, 1),
        "method.prompts.words": "",
        **dassl(lr=0.002, epochs=50, batch=32),
        **pgd("4/255", steps=3, step_size=2 / 3),
    }


class AdvVPSettings(AdversarialSettings):
    """Visual tokens; the texts are the templates."""

    fixed: ClassVar[dict[str, Any]] = VISUAL_ONLY
    published: ClassVar[dict[str, Any]] = {**tokens("visual", 2, 9), **_TAPT}


class AdvVPPixelsSettings(AdversarialSettings):
    """A frame of pixels; visual tokens at the embedding may be added, as TeCoA's authors do."""

    fixed: ClassVar[dict[str, Any]] = {name: value for name, value in VISUAL_ONLY.items() if name != "frame"}
    defaults: ClassVar[dict[str, Any]] = {"visual_tokens": 0, "visual_depth": 1, "frame": 30 / 224}
    # TeCoA's learning rate of 40 is of a frame after the normalisation; ours is in pixel units, so the optimiser stays ours.
    published: ClassVar[dict[str, Any]] = {
        "method.prompts.frame": 30 / 224,
        **tokens("visual", 100, 1),
        "train.epochs": 50,
        "train.batch_size": 256,
        **pgd("1/255", steps=2, step_size=1.0),
    }


class AdvVLPSettings(AdversarialSettings):
    """Both branches; by default the prompts of APD."""

    class_contexts: ClassVar[bool] = True
    published: ClassVar[dict[str, Any]] = {**_TAPT_TEXT, **tokens("visual", 2, 9), **_TAPT}


class AdvMaPLeSettings(AdversarialSettings):
    """Coupled prompts."""

    fixed: ClassVar[dict[str, Any]] = TEXT_TO_VISION
    defaults: ClassVar[dict[str, Any]] = {"text_tokens": 2, "visual_tokens": 2}
    published: ClassVar[dict[str, Any]] = AdvVLPSettings.published


class AdversarialTuning(Method):
    """``(1 - clean) * CE(z(x'), y) + clean * CE(z(x), y)``."""

    Settings = AdversarialSettings
    settings: AdversarialSettings

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        """Return the terms of the formula at the head of this page."""
        share = self.settings.clean
        terms = {}
        if share < 1:
            terms["adv_ce"] = (1 - share) * step.cross_entropy(step.student.logits(x_adv))
        if share:
            terms["clean_ce"] = share * step.cross_entropy(step.clean_logits())
        return terms


class APT(AdversarialTuning):
    """Adversarial prompt tuning of the text context."""

    summary = "adversarial tuning of the text context; meant for a robust image tower"
    source = "APT (Li et al., CVPR 2024)"
    Settings = APTSettings


class AdvVP(AdversarialTuning):
    """Adversarial visual prompting with tokens."""

    summary = "adversarial tuning of visual tokens"
    source = "AdvVP (Mao et al., ICLR 2023), AdvVPT (Wang et al. 2025)"
    Settings = AdvVPSettings


class AdvVPPixels(AdversarialTuning):
    """Adversarial visual prompting with pixels."""

    summary = "adversarial tuning of a frame of pixels around the image"
    source = "TeCoA-VP (Mao et al., ICLR 2023), C-AVP (Chen et al., ICASSP 2023)"
    Settings = AdvVPPixelsSettings


class AdvVLP(AdversarialTuning):
    """Adversarial vision-language prompting: independent tokens in both branches."""

    summary = "adversarial tuning of visual and text tokens without distillation: the control"
    source = "AdvVLP (Zhou 2024), APT-VLI (Wang 2025)"
    Settings = AdvVLPSettings


class AdvMaPLe(AdversarialTuning):
    """Adversarial multi-modal prompting: coupled tokens."""

    summary = "adversarial tuning of text tokens that are mapped to visual ones"
    source = "AdvMaPLe (Zhou 2024), APT-VLJ (Wang 2025)"
    Settings = AdvMaPLeSettings
