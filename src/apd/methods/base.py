"""What every method shares: settings, a student, and what the training loop calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from apd.attacks.base import Attack
from apd.attacks.objectives import Objective, cross_entropy
from apd.attacks.settings import ELSEWHERE
from apd.attacks.threat import ThreatModel
from apd.errors import ApdError, InputError
from apd.methods.step import Step
from apd.models.classifier import BoundCLIP, PromptedCLIP
from apd.models.encoder import DualEncoder
from apd.models.prompts import Prompts, PromptSpec
from apd.util.section import GrowingSection

if TYPE_CHECKING:
    from apd.data.dataset import Decoded, Images
    from apd.settings.train import TrainSettings

Tune = Callable[["Method"], None]
"""Trains another method on the same data, in place; the loop hands it to `Method.prepare`."""


Climbed = Literal["labels", "soft labels", "answers"]


class MethodSettings(GrowingSection):
    """What can be set about a method; every method has at least prompts.

    A method says with class variables where its prompts differ from `PromptSpec`, and what its paper sets:

    - ``defaults``: prompt settings of its own, which a user may change;
    - ``fixed``: prompt settings that define it; other values are refused;
    - ``published``: dotted settings of its paper, of method and training, which ``preset: published`` puts under all that
      is set explicitly;
    - ``variants``: which settings each value of a field ``variant`` presets;
    - ``class_contexts``: whether its prompts are class-specific by default, given enough labelled images of all classes;
    - ``models``: fields that name another CLIP model, which a suite finds below its root and identifies by its weights.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    fixed: ClassVar[Mapping[str, Any]] = {}
    published: ClassVar[Mapping[str, Any]] = {}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    models: ClassVar[tuple[str, ...]] = ()
    class_contexts: ClassVar[bool] = False

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
                    f"this method has prompts.{name}={value}, got {found}; choose a method with other prompts"
                )
        return self

    def zero_gradient_at_clean(self, train: TrainSettings) -> bool:
        """Whether what the training attack climbs has no gradient at the clean image itself."""
        return False

    @property
    def climbs(self) -> Climbed:
        """What the inner objective is about: labels, soft labels, or anything else, which no loss on labels can replace."""
        return "labels"

    def check_training(self, train: TrainSettings) -> None:
        """Check that these settings of training fit the method.

        Raises:
            ValueError: for what cannot work, or would have no effect; in one line with the way out.
        """
        attack, chosen = train.attack, getattr(self, "inner", None)
        own, way_out = (f" (method.inner={chosen})", ", or method.inner=ce") if chosen else ("", "")
        if attack.loss != "method" and self.climbs == "answers":
            raise ValueError(
                f"train.attack.loss={attack.loss} can replace a cross-entropy only, and this method's attack climbs another "
                f"objective{own}; set it to method{way_out}"
            )
        if attack.stop_margin is not None and (
            self.climbs == "answers" or (self.climbs == "soft labels" and attack.loss == "method")
        ):
            raise ValueError(
                f"train.attack.stop_margin needs an attack on labels, and this method's inner objective{own} is about none; set "
                f"it to null{way_out}"
            )
        if (start := attack.clean_start) and self.zero_gradient_at_clean(train):
            raise ValueError(
                f"{start} leaves this method's attack at the clean image, where what it climbs has no gradient; {ELSEWHERE}"
            )
        if train.eps_warmup_wait and attack.kind == "carried" and self.zero_gradient_at_clean(train):
            raise ValueError(
                "train.eps_warmup_wait with train.attack.kind=carried starts the kept images at the clean ones, where what this "
                "method's attack climbs has no gradient; set it to 0, or choose another kind"
            )
        if not train.eps_per_image:
            return
        if attack.attack_class.moves_with_prompts or attack.stop_margin is not None:
            raise ValueError(
                "train.eps_per_image needs an attack of its own on whole batches; set train.attack.kind to pgd, fgsm-rs or "
                "n-fgsm, and train.attack.stop_margin to null"
            )
        made = attack.attack_class.from_settings(attack)
        if not made.needs_budget and not made.passes:
            raise ValueError(
                f"train.eps_per_image has no effect with train.attack.kind={attack.kind}, which takes no eps as it is set; set "
                "it to false"
            )
        if attack.loss == "kl" or (attack.loss == "method" and self.zero_gradient_at_clean(train)):
            raise ValueError(
                "train.eps_per_image needs an attack objective with a gradient at the clean image, and this one has none; set "
                "it to false"
            )

    def check_without_labels(self) -> None:
        """Check that the method can learn from images none of which has a label. By default it learns by pseudo-labels.

        Raises:
            ValueError: for what needs labels; in one line with the way out.
        """


@dataclass(frozen=True)
class Preparation:
    """What a method may use before its first step.

    Args:
        images: labelled training images as bytes, not augmented, on the encoder's device; there may be none.
        attack: makes training images adversarial.
        threat: the attack's budget.
        seed: the run's seed.
        tune: trains another method (a teacher) on the same images.
        validation: validation images, in the form of ``images``.
        pool: all training images, in the order of `Step.index`; some may have a pseudo-label or none. None: ``images``.
    """

    images: Decoded
    attack: Attack
    threat: ThreatModel
    seed: int
    tune: Tune
    validation: Decoded
    pool: Images | None = None

    @property
    def everything(self) -> Images:
        """All training images, in the order of `Step.index`."""
        return self.images if self.pool is None else self.pool


class Method(nn.Module):
    """A way of training prompts: which prompts, which inner objective, which outer loss.

    ``summary`` and ``source`` are for people; ``adversarial`` says whether the loop attacks the training images, ``learns``
    whether there is anything to train, ``pseudo_labels`` whether images without a label get a clean teacher's most probable
    class for one. Where they do not, their label is `UNKNOWN` and no cross-entropy is taken of them.

    Args:
        settings: an instance of the class's ``Settings``.
        zero_shot: the classifier without prompts; the student is built from it.
        seed: decides what starts at random.
    """

    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    adversarial: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    pseudo_labels: ClassVar[bool] = True

    def __init__(self, settings: MethodSettings, zero_shot: PromptedCLIP, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.student = prompted(zero_shot, settings.prompts, seed)

    def prepare(self, before: Preparation) -> None:
        """Do what comes before the first step, such as tuning a teacher. By default nothing."""

    def inner(self, step: Step, attacked: BoundCLIP) -> Objective:
        """Return what the attack maximises, on ``attacked``: the student with everything but the pixels detached.

        By default the cross-entropy (Madry 2018).

        Raises:
            InputError: by default, for images without any label.
        """
        if not self.pseudo_labels and step.labelled is not None:
            raise InputError(
                f"{type(self).__name__} leaves images without labels (pseudo_labels = False), and the cross-entropy that its "
                "attack climbs by default needs one for each: define inner()."
            )
        return Objective(attacked.logits, cross_entropy, step.labels)

    def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        """Return weighted, named terms; the loop minimises their sum."""
        raise TypeError(f"{type(self).__name__} must define loss()")

    def labeller(self) -> PromptedCLIP:
        """Return the classifier whose most probable class stands for a missing label: by default zero-shot CLIP."""
        return self.student.zero_shot()

    def facts(self) -> dict[str, Any]:
        """Return what training has measured and no setting says, as JSON for ``run.json``. By default nothing."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return every tensor that training changes or prepares; the frozen encoders are not part of it."""
        modules = self.named_modules(remove_duplicate=False)
        frozen = tuple(f"{name}." for name, module in modules if isinstance(module, DualEncoder))
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(frozen)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        self.load_state_dict(dict(state), strict=False)


def prepare(method: Method, before: Preparation) -> None:
    """Prepare a method, whose tensors stay those it was made with: a resumed run makes it anew and does not prepare it.

    Raises:
        InputError: ``prepare`` made another tensor, or changed the form of one, or which ones are trained.
    """
    known = _kinds(method)
    method.prepare(before)
    found = _kinds(method)
    for name in dict.fromkeys([*known, *found]):
        if known.get(name) != found.get(name):
            what = (
                "changes its form, or whether it is trained"
                if name in known and name in found
                else "makes or removes it"
            )
            raise InputError(
                f"The tensor {name!r} of {type(method).__name__}: prepare() {what}, and a resumed run would not know; make it, "
                "and set requires_grad, in __init__. A teacher that is tuned there must answer under torch.no_grad()."
            )


def _kinds(method: Method) -> dict[str, tuple[object, ...]]:
    """Return which tensors a method has, whether each is trained, and its form, unless the method restores them on its own."""
    trained = {name for name, parameter in method.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    fixed = type(method).restore is Method.restore
    forms = {name: (tensor.shape, tensor.dtype) if fixed else () for name, tensor in method.state().items()}
    return {name: (name in trained, *form) for name, form in forms.items()}


def facts_of(method: Method) -> dict[str, Any]:
    """Return the facts of a method.

    Raises:
        ApdError: they are not JSON, which ``run.json`` is.
    """
    found: object = method.facts()
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        found = error
    if isinstance(found, dict):
        return found
    wanted = f"facts() of {type(method).__name__} must return a dict of JSON values, numbers of a tensor by .tolist()"
    raise ApdError(f"{wanted}, got {found if isinstance(found, Exception) else type(found).__name__}.")


def refuse_smoothing(train: TrainSettings, name: str) -> None:
    """Refuse label smoothing with the method ``name``, which looks at no labels.

    Raises:
        ValueError: where it is asked for.
    """
    if train.label_smoothing:
        raise ValueError(f"train.label_smoothing has no effect on {name}, which looks at no labels; set it to 0")


def prompted(classifier: PromptedCLIP, spec: PromptSpec, seed: int) -> PromptedCLIP:
    """Give a classifier fresh prompts, started from the words in front of its first template's class name."""
    head = classifier.templates[0].split("{}", 1)[0]
    prompts = Prompts.initial(spec, classifier.encoder, head, seed, len(classifier.class_names))
    return PromptedCLIP(classifier.encoder, prompts, classifier.class_names, classifier.templates)
