"""What every method shares: a student, a step, and what the loop asks of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from apd import losses
from apd.attacks.base import Objective
from apd.attacks.objectives import cross_entropy
from apd.classifier import BoundCLIP, PromptedCLIP
from apd.prompts import Prompts, PromptSpec

Tune = Callable[["Method"], None]
"""Trains another method on the same data, in place; the loop hands it to `Method.prepare`."""


class MethodSettings(BaseModel):
    """What can be set about a method; every method has at least prompts.

    ``variants`` names presets: which settings each value of a field ``variant`` presets.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    prompts: PromptSpec = PromptSpec()


@dataclass
class Step:
    """One batch in one optimiser step, and what has been computed for it.

    Args:
        x: images (B,3,S,S) in [0,1].
        labels: (B,) int64.
        student: the student bound for this step, with gradients to its prompts.
        smoothing: of the labels in the outer loss's cross-entropy terms (Szegedy 2016).
        lasting: what holds for these images whatever the prompts, shared by all steps on them.
    """

    x: Tensor
    labels: Tensor
    student: BoundCLIP
    smoothing: float = 0.0
    lasting: dict[str, Any] = field(default_factory=dict)
    _known: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """``compute()``, called once a step: what the attack and the loss both need is not computed twice."""
        if name not in self._known:
            self._known[name] = compute()
        return self._known[name]

    def lastingly(self, name: str, compute: Callable[[], Any]) -> Any:
        """``compute()``, called once a batch, also where several steps are taken on it: for what no prompt changes."""
        if name not in self.lasting:
            self.lasting[name] = compute()
        return self.lasting[name]

    def clean_features(self) -> Tensor:
        """The student's features of the clean images (B, D), with gradients."""
        features: Tensor = self.once("clean features", lambda: self.student.features(self.x))
        return features

    def clean_logits(self) -> Tensor:
        """The student's logits of the clean images (B, C), with gradients."""
        return self.student.compare(self.clean_features())

    def cross_entropy(self, z: Tensor) -> Tensor:
        """The outer loss's ``CE(z, y)`` of logits (B, C), averaged over the batch, with smoothed labels if asked."""
        return losses.cross_entropy(z, self.labels, self.smoothing)


class Method(nn.Module):
    """A way of training prompts: which prompts, which inner objective, which outer loss.

    Args:
        settings: an instance of the class's ``Settings``.
        student: classifier without prompts; the method gives it its own.
        seed: of what starts at random.
    """

    summary: ClassVar[str]
    source: ClassVar[str]
    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    adversarial: ClassVar[bool] = True

    def __init__(self, settings: MethodSettings, student: PromptedCLIP, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.student = prompted(student, settings.prompts, seed)

    def prepare(self, tune: Tune) -> None:
        """What comes before the first step: tune a teacher, fill a bank. Nothing by default."""

    def inner(self, step: Step, attacked: BoundCLIP) -> Objective:
        """What the attack maximises, on ``attacked``: the student with everything but the pixels detached.

        By default the cross-entropy (Madry 2018).
        """
        return Objective(attacked.logits, cross_entropy, step.labels)

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        """Weighted, named terms; the loop minimises their sum."""
        raise TypeError(f"{type(self).__name__} must define loss()")

    def state(self) -> dict[str, Tensor]:
        """Every tensor that training changes or prepares; the frozen encoders are not part of it."""
        return {name: tensor for name, tensor in self.state_dict().items() if "encoder." not in name}


def prompted(classifier: PromptedCLIP, spec: PromptSpec, seed: int) -> PromptedCLIP:
    """The same classifier with fresh prompts, started from the words in front of its first template's class name."""
    head = classifier.templates[0].split("{}", 1)[0]
    prompts = Prompts.initial(spec, classifier.encoder, head, seed)
    return PromptedCLIP(classifier.encoder, prompts, classifier.class_names, classifier.templates)
