"""What every method shares: a student, a step, and what the loop asks of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from apd import losses
from apd.attacks.base import Attack, Objective
from apd.attacks.objectives import cross_entropy
from apd.attacks.threat import ThreatModel
from apd.models import DualEncoder
from apd.models.classifier import BoundCLIP, PromptedCLIP
from apd.models.prompts import Prompts, PromptSpec

if TYPE_CHECKING:
    from apd.data.dataset import Decoded
    from apd.settings.train import AttackKind, TrainSettings

Tune = Callable[["Method"], None]
"""Trains another method on the same data, in place; the loop hands it to `Method.prepare`."""


class MethodSettings(BaseModel):
    """What can be set about a method; every method has at least prompts.

    A method says with class variables where its prompts differ from `PromptSpec`, and what its paper sets:

    - ``defaults``: prompt settings of its own, which a user may change;
    - ``fixed``: prompt settings that make it this method; other values are refused;
    - ``published``: dotted settings of its paper, of method and training, which ``preset: published`` puts under all that
      is set explicitly;
    - ``variants``: which settings each value of a field ``variant`` presets;
    - ``models``: fields that name another CLIP, which a suite finds below its root and knows by its weights, as a run does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    defaults: ClassVar[Mapping[str, Any]] = {}
    fixed: ClassVar[Mapping[str, Any]] = {}
    published: ClassVar[Mapping[str, Any]] = {}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    models: ClassVar[tuple[str, ...]] = ()

    preset: Literal["own", "published"] = Field(
        "own", description="where settings come from that are not given: this project's choice, or the method's paper"
    )
    prompts: PromptSpec = PromptSpec()

    @model_validator(mode="before")
    @classmethod
    def _prompts_of_the_method(cls, values: Any) -> Any:
        given = values.get("prompts", {}) if isinstance(values, dict) else None
        if not isinstance(given, Mapping):
            return values
        own = {**cls.defaults, **cls.fixed}
        return {**values, "prompts": {**own, **given}} if own or given else values

    @model_validator(mode="after")
    def _fixed_stays(self) -> MethodSettings:
        for name, value in self.fixed.items():
            found = getattr(self.prompts, name)
            if found != value:
                raise ValueError(
                    f"this method has prompts.{name}={value}, got {found}; choose a method that prompts otherwise"
                )
        return self

    def flat_at_clean(self, kind: AttackKind) -> bool:
        """Whether what an attack of this ``kind`` climbs has no gradient at the clean image itself."""
        return False

    def check_training(self, train: TrainSettings) -> None:
        """Nothing, where these settings of training go with the method.

        Raises:
            ValueError: for what cannot work, or would not be looked at; in one line with the way out.
        """
        attack = train.attack
        if not attack.random_start and attack.starts_where_told and self.flat_at_clean(attack.kind):
            raise ValueError(
                "train.attack.random_start=false leaves this method's attack at the clean image, where what it climbs has no "
                "gradient; set it to true"
            )


@dataclass(frozen=True)
class Preparation:
    """What a method may use before its first step.

    Args:
        images: training images as bytes, not augmented, on the encoder's device.
        attack: that makes training images adversarial.
        threat: its budget.
        seed: of the run.
        tune: trains another method (a teacher) on the same images.
    """

    images: Decoded
    attack: Attack
    threat: ThreatModel
    seed: int
    tune: Tune


@dataclass
class Step:
    """One batch in one optimiser step, and what has been computed for it.

    Args:
        x: images (B,3,S,S) in [0,1].
        labels: (B,) int64.
        student: the student bound for this step, with gradients to its prompts.
        index: (B,) int64, the places of the images among ``Preparation.images``; None outside of a training loop.
        smoothing: of the labels in the outer loss's cross-entropy terms (Szegedy 2016).
        lasting: what holds for these images whatever the prompts, shared by all steps on them.
    """

    x: Tensor
    labels: Tensor
    student: BoundCLIP
    index: Tensor | None = None
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

    ``summary`` and ``source`` are for people; ``adversarial`` says whether the loop attacks the training images, ``learns``
    whether there is anything to train.

    Args:
        settings: an instance of the class's ``Settings``.
        student: classifier without prompts; the method gives it its own.
        seed: of what starts at random.
    """

    summary: ClassVar[str]
    source: ClassVar[str]
    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    adversarial: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    def __init__(self, settings: MethodSettings, student: PromptedCLIP, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.student = prompted(student, settings.prompts, seed)

    def prepare(self, before: Preparation) -> None:
        """What comes before the first step: tune a teacher, fill a bank. Nothing by default."""

    def inner(self, step: Step, attacked: BoundCLIP) -> Objective:
        """What the attack maximises, on ``attacked``: the student with everything but the pixels detached.

        By default the cross-entropy (Madry 2018).
        """
        return Objective(attacked.logits, cross_entropy, step.labels)

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        """Weighted, named terms; the loop minimises their sum."""
        raise TypeError(f"{type(self).__name__} must define loss()")

    def facts(self) -> dict[str, Any]:
        """What training has found out about itself and no setting says, as JSON for ``run.json``. Nothing by default."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Every tensor that training changes or prepares; the frozen encoders are not part of it."""
        modules = self.named_modules(remove_duplicate=False)
        frozen = tuple(f"{name}." for name, module in modules if isinstance(module, DualEncoder))
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(frozen)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        self.load_state_dict(dict(state), strict=False)


def prompted(classifier: PromptedCLIP, spec: PromptSpec, seed: int) -> PromptedCLIP:
    """The same classifier with fresh prompts, started from the words in front of its first template's class name."""
    head = classifier.templates[0].split("{}", 1)[0]
    prompts = Prompts.initial(spec, classifier.encoder, head, seed, len(classifier.class_names))
    return PromptedCLIP(classifier.encoder, prompts, classifier.class_names, classifier.templates)
