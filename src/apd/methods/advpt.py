"""AdvPT (Zhang et al., ECCV 2024): text context aligned with a bank of adversarial image features, computed once.

::

    bank   b_i = f(x'_i),  x'_i = argmax_{|x'-x_i| <= eps} KL( softmax f(x_i) || softmax f(x') ), once, on the plain CLIP
    outer  CE( z(b_i), y_i )

The image tower stays as it was and no image passes through it while the prompts train, so a step costs text alone. The
attack that fills the bank does not know the prompts (``inner: ce`` lets it know the templates). **What is reported as
robustness is therefore against attacks on the plain CLIP**; evaluation here attacks the whole model, prompts included,
and against that text prompts on a plain CLIP keep almost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from apd.attacks.objectives import Objective, cross_entropy, kl_to_logits
from apd.data.streamed import in_parts
from apd.methods.base import Climbed, Method, MethodSettings, Preparation
from apd.methods.presets import dassl, pgd, tokens
from apd.methods.prompt_kinds import TEXT_ONLY
from apd.methods.step import Step
from apd.models.classifier import PromptedCLIP
from apd.util.seeds import sample_seeds

if TYPE_CHECKING:
    from apd.settings.train import TrainSettings

_BATCH = 128


class AdvPTSettings(MethodSettings):
    """Text context, at the embedding alone unless ``prompts.text_depth`` says otherwise."""

    fixed: ClassVar[dict[str, Any]] = TEXT_ONLY
    defaults: ClassVar[dict[str, Any]] = {"text_depth": 1}
    # PGD of 10 steps of 1.25 eps / 10, as in the public code.
    published: ClassVar[dict[str, Any]] = {
        **tokens("text", 32, 1),
        "method.prompts.words": "",
        **dassl(lr=0.002, epochs=100, batch=32),
        **pgd("8/255", steps=10, step_size=0.125),
    }

    inner: Literal["features", "ce"] = Field(
        "features", description="what fills the bank: KL of the softmax of image features, or CE with the templates"
    )

    @property
    def climbs(self) -> Climbed:
        """See `MethodSettings.climbs`."""
        return "labels" if self.inner == "ce" else "answers"

    def zero_gradient_at_clean(self, train: TrainSettings) -> bool:
        """Whether what the training attack climbs has no gradient at the clean image itself."""
        return self.inner == "features"

    def check_training(self, train: TrainSettings) -> None:
        """Check that these settings of training fit the method; see `MethodSettings.check_training`."""
        if train.attack.loss != "method":
            raise ValueError(
                f"train.attack.loss={train.attack.loss} has no effect on advpt; choose with method.inner: features or ce"
            )
        super().check_training(train)
        for name in ("eps_warmup_epochs", "eps_warmup_wait", "eps_per_image"):
            if getattr(train, name):
                raise ValueError(
                    f"train.{name} has no effect on advpt, whose images are attacked once, before training, each within the "
                    "whole train.eps; leave it out"
                )
        if train.attack.attack_class.moves_with_prompts:
            raise ValueError(
                f"train.attack.kind={train.attack.kind} has no effect on advpt, whose images are attacked once, before "
                "training; use pgd, fgsm-rs or n-fgsm"
            )


class AdvPT(Method):
    """Text context tuned on adversarial features of the plain CLIP."""

    summary = "text context tuned on adversarial features of the plain CLIP; robust against attacks on that CLIP only"
    source = "AdvPT (Zhang et al., ECCV 2024)"
    Settings = AdvPTSettings
    settings: AdvPTSettings
    adversarial = False
    bank: Tensor

    def __init__(self, settings: AdvPTSettings, zero_shot: PromptedCLIP, seed: int = 0) -> None:
        super().__init__(settings, zero_shot, seed)
        self.original = zero_shot
        self.register_buffer("bank", torch.empty(0))

    def prepare(self, before: Preparation) -> None:
        """Fill the bank: adversarial features (N, D) of the training images, of unit length."""
        plain, images, features = self.original.bind_detached(), before.everything, []
        for index in in_parts(images, _BATCH):
            x = images.pixels(index)
            if self.settings.inner == "ce":
                objective = Objective(plain.logits, cross_entropy, images.labels[index])
            else:
                objective = Objective(plain.embed, kl_to_logits, plain.embed(x))
            seeds = sample_seeds([images.ids[i] for i in index.tolist()], before.seed, "bank")
            features.append(plain.features(before.attack(objective, x, before.threat, seeds)).detach())
        self.bank = torch.cat(features)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the bank from a checkpoint, so that a resumed run does not fill it again."""
        self.bank = state["bank"].to(self.bank)
        super().restore(state)

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        """Return the terms of the formula at the head of this page."""
        return {"adv_ce": step.cross_entropy(step.student.logits_from_features(self.bank[step.index]))}
