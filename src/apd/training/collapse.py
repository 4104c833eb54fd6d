"""Warnings of a training that collapses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.stats import binom
from torch import Tensor

from apd.errors import ApdError
from apd.settings.train import TrainSettings

VANISHED = 0.01
"""An adversarial term (nats) that is as good as 0."""
CHANCE = 0.01
"""A fall of validation accuracy counts where chance alone makes one as deep less often than this."""
SEVERAL = 3
"""Validations in a row, and images per class, without which one class for all images is not evidence of collapse."""
ALIKE = 0.9999
"""A cosine of class features that are as good as the same."""
_CLIP = 1.0
"""A norm of the gradient to which clipping it calms training."""


@dataclass(frozen=True)
class Validation:
    """What a look at the validation split found.

    Args:
        images: their number.
        clean: images that are classified rightly.
        robust: of those, images that withstand the short attack.
        largest: images given to the class that is predicted most often.
        classes: number of classes.
        alike: smallest cosine of two class features.
        agreement: right is what the teacher says, as the images have no labels.
    """

    images: int
    clean: int
    robust: int
    largest: int
    classes: int
    alike: float
    agreement: bool = False

    def percent(self, right: int) -> float:
        """A number of images in percent."""
        return 100 * right / max(1, self.images)

    def record(self) -> dict[str, float]:
        """Accuracies in percent, or agreement with the teacher, as they are logged: clean, then robust."""
        name = "agreement_with_teacher" if self.agreement else "val"
        return {f"{name}_clean": self.percent(self.clean), f"{name}_robust": self.percent(self.robust)}


class Diverged(ApdError):
    """Training came to numbers that are not finite."""


class CollapseMonitor:
    """Watches for the known ways in which adversarial prompt training collapses, and explains them.

    Known case: with released settings, a neighbouring method's adversarial term falls to 0.0001 in the second epoch
    while its robust accuracy falls to 0.

    Args:
        settings: the section ``train``, so that no advice is given that is followed already.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        self.best_clean = self.best_robust = 0.0
        self.one_class = 0  # validations in a row

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"best_clean": self.best_clean, "best_robust": self.best_robust, "one_class": self.one_class}

    def load(self, state: Mapping[str, float]) -> None:
        """Take up what a checkpoint kept; those of older versions hold ``best_robust`` only."""
        self.best_robust = state["best_robust"]
        self.best_clean, self.one_class = state.get("best_clean", 0.0), int(state.get("one_class", 0))

    def check_loss(self, terms: Mapping[str, float], step: int) -> None:
        """Stop where the loss is not finite.

        Args:
            terms: the loss terms.
            step: optimiser steps done, the one that these are of included.

        Raises:
            Diverged: naming the term and the way out.
        """
        bad = [f"{name} is {value}" for name, value in terms.items() if not math.isfinite(value)]
        if bad and step == 1:
            bf16 = ", or to train.precision=bf16 (fp32 tells)" if self.settings.precision == "bf16" else ""
            raise Diverged(
                f"The term {bad[0]} in the first step, before anything was learned: it is due to the method's loss or to "
                f"the images{bf16}."
            )
        if bad:
            raise Diverged(f"Training diverged: the term {bad[0]} at step {step}. {self._calmer()}")

    def check_gradients(self, terms: Mapping[str, Tensor], gradients: Mapping[str, Tensor], step: int) -> None:
        """Stop before an optimiser step that would spoil the prompts; waits for the device once.

        Args:
            terms: the loss terms, scalars.
            gradients: what the sum of the terms has left on each tensor of the prompts, by name.
            step: optimiser steps done, the one that these are for included.

        Raises:
            Diverged: naming the term, or else the gradient, and the way out.
        """
        values = {**terms, **gradients}
        finite = torch.stack([value.detach().isfinite().all() for value in values.values()]).tolist()
        if all(finite):
            return
        self.check_loss({name: float(term.detach()) for name, term in terms.items()}, step)
        name = next(name for name, good in zip(values, finite, strict=True) if not good)
        raise Diverged(f"Training diverged: the gradient of {name} is not finite at step {step}. {self._calmer()}")

    def check_prompts(self, prompts: Mapping[str, Tensor], step: int) -> None:
        """Stop where prompts are not finite, so that no checkpoint is made of them.

        Args:
            prompts: what is trained, by name.
            step: optimiser steps done.

        Raises:
            Diverged: naming the prompts and the way out.
        """
        bad = [name for name, value in prompts.items() if not bool(value.detach().isfinite().all())]
        if bad:
            raise Diverged(f"Training diverged: {bad[0]} is not finite after step {step}. {self._calmer()}")

    def _calmer(self) -> str:
        """What may keep training from diverging, and is not done yet."""
        optimizer = self.settings.optimizer
        ways = ["lower train.optimizer.lr"]
        if optimizer.clip is None or optimizer.clip > _CLIP:
            ways.append(f"set train.optimizer.clip={_CLIP:g}")
        if self.settings.precision != "fp32":
            ways.append("set train.precision=fp32")
        text = ", or ".join(ways)
        return f"{text[0].upper()}{text[1:]}."

    def check_logits(self, z: Tensor) -> None:
        """Stop where validation logits are not finite: the loss shows it a step later only, and after the last step never.

        Raises:
            Diverged: naming the way out.
        """
        if not bool(z.isfinite().all()):
            raise Diverged(f"Training diverged: the logits of validation images are not finite. {self._calmer()}")

    def check_validation(self, terms: Mapping[str, float], found: Validation) -> list[str]:
        """Warn of a collapse for which the validation split has enough evidence.

        Args:
            terms: the last logged training terms.
            found: the look at the validation split.
        """
        warnings = []
        adversarial = [value for name, value in terms.items() if name.startswith("adv_")]
        if adversarial and sum(adversarial) < VANISHED and _fell(found.robust, found.images, self.best_robust):
            warnings.append(
                f"Collapse: the adversarial term is {sum(adversarial):.4f} while validation robustness fell from "
                f"{self.best_robust:.1f} to {found.percent(found.robust):.1f}: the training attack no longer finds anything, "
                "a stronger one does. Try more train.attack.steps with a smaller step_size, or a lower learning rate."
            )
        if found.classes > 1 and found.alike > ALIKE:
            warnings.append(
                f"All class features are the same (cosine {found.alike:.5f}), so no image can be told from another by "
                "its class: check the tokenizer of the CLIP model and the class names, and the CLIP model without prompts "
                "(apd evaluate --model CLIP --data DATA --attack clean)."
            )
        elif self._is_one_class(found):
            warnings.append(
                "Collapse: every validation image is given the same class. Lower train.optimizer.lr or train.eps."
            )
        self.best_clean = max(self.best_clean, found.percent(found.clean))
        self.best_robust = max(self.best_robust, found.percent(found.robust))
        return warnings

    def _is_one_class(self, found: Validation) -> bool:
        """Whether all images are given one class, and neither chance nor a bad start explains it."""
        at_chance = found.clean <= 1.5 * found.images / found.classes
        same = found.classes > 1 and found.largest > 0.99 * found.images and at_chance
        self.one_class = self.one_class + 1 if same else 0
        lasting = self.one_class >= SEVERAL and found.images >= SEVERAL * found.classes
        return same and (lasting or _fell(found.clean, found.images, self.best_clean))


def _fell(right: int, images: int, before: float) -> bool:
    """Whether ``right`` of ``images`` are fewer than ``before`` percent, in an exact binomial test at `CHANCE`."""
    return bool(binom.cdf(right, images, before / 100) < CHANCE)
