"""The running average of the prompts while they are trained, which is what is validated and saved where one is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from apd.models.classifier import PromptedCLIP
from apd.settings.train import TrainSettings

_PREFIX = "average."


def ema_share(step: int, decay: float) -> float:
    """Share of the new prompts in their running average; it falls to ``1 - decay``, so that the start does not linger."""
    return 1 - min(decay, (1 + step) / (10 + step))


def swa_share(step: int, steps: int, last: float) -> float:
    """Share of the new prompts in the mean over the ``last`` share of all steps (SWA, Izmailov 2018, arXiv 1803.05407).

    1 until these steps begin: the average is then the prompts themselves.
    """
    first = steps - math.ceil(round(last * steps, 9))  # 0.07 * 100 is a little more than 7
    return 1 / max(1, step - first + 1)


@torch.no_grad()
def update_average(average: Mapping[str, Tensor], current: Mapping[str, Tensor], share: float) -> None:
    """``average <- (1 - share) * average + share * current``, in place."""
    for name, value in average.items():
        value.lerp_(current[name].to(value.dtype), share)


class RunningAverage:
    """The average that ``train.ema`` or ``train.swa`` asks for; without either it keeps nothing.

    Args:
        settings: the section ``train``.
        steps: how many the training takes.
    """

    def __init__(self, settings: TrainSettings, steps: int) -> None:
        self._ema, self._swa, self._steps = settings.ema, settings.swa, steps
        self._tensors: dict[str, Tensor] = {}

    def begin(self, student: PromptedCLIP) -> None:
        """Start from a student's prompts."""
        if (self._ema or self._swa) and student.prompts is not None:
            self._tensors = {name: tensor.detach().clone() for name, tensor in student.prompts.state_dict().items()}

    def update(self, student: PromptedCLIP, step: int) -> None:
        """Take in the prompts that a step has left."""
        if self._tensors and student.prompts is not None:
            share = swa_share(step, self._steps, self._swa) if self._swa else ema_share(step, self._ema)
            update_average(self._tensors, student.prompts.state_dict(), share)

    def deployed(self, student: PromptedCLIP) -> PromptedCLIP:
        """Return the student with the average in place of its prompts; itself where none is kept."""
        if not self._tensors or student.prompts is None:
            return student
        prompts = type(student.prompts).from_tensors(student.prompts.spec, student.encoder.info, self._tensors)
        return PromptedCLIP(student.encoder, prompts.to(student.encoder.device), student.class_names, student.templates)

    def state(self) -> dict[str, Tensor]:
        """Return the average as named tensors, for a checkpoint."""
        return {f"{_PREFIX}{name}": tensor for name, tensor in self._tensors.items()}

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Put back what `state` gave, from all tensors of a checkpoint."""
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
        self._tensors = {name.removeprefix(_PREFIX): tensor.to(device) for name, tensor in own.items()}
