"""What every evaluation attack is: it gets a whole classifier, and samples that the classifier gets right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from apd.attacks.base import Attack, TrainingAttack, like
from apd.attacks.objectives import Objective, cross_entropy, finite, margin, misclassified
from apd.attacks.pgd import PGD
from apd.attacks.threat import Norm, ThreatModel
from apd.errors import InputError
from apd.util.seeds import sample_seeds


@dataclass(frozen=True, eq=False)
class AttackBatch:
    """The samples under attack.

    Args:
        x: images (B,3,H,W) in [0,1].
        labels: (B,) int64; the classifier gets all of them right.
        ids: one per sample; with ``seed`` they decide what is random.
        seed: the evaluation's seed.
    """

    x: Tensor
    labels: Tensor
    ids: Sequence[str]
    seed: int = 0

    def __len__(self) -> int:
        return len(self.x)

    def copy(self) -> AttackBatch:
        """Return these samples with images that may be changed."""
        return replace(self, x=self.x.clone())

    def select(self, index: Tensor) -> AttackBatch:
        """Return the samples at ``index``."""
        return AttackBatch(self.x[index], self.labels[index], [self.ids[i] for i in index.tolist()], self.seed)


@dataclass(frozen=True)
class Found:
    """What an evaluation attack found.

    Args:
        images: (B,3,H,W), inside the threat model.
        by: the part of the attack that made each sample's image.
        flags: warnings of the attack's library, and how often each was raised.
    """

    images: Tensor
    by: list[str]
    flags: Counter[str] = field(default_factory=Counter)


class Watch:
    """Follows an evaluation attack part by part; this base class does nothing with what it is told.

    Args:
        done: parts that all samples of the batch withstood in an earlier call; the attack skips them.
    """

    def __init__(self, done: Sequence[str] = ()) -> None:
        self.done = tuple(done)

    def begin(self, part: str) -> None:
        """Take note that a part begins."""

    def end(self, part: str, ids: Sequence[str], predicted: Tensor, flags: Counter[str]) -> None:
        """Take note of what a part did; not called for the last part, whose results the attack returns.

        Args:
            part: the part's name.
            ids: the samples it was given.
            predicted: their classes (len(ids),) on the images it found.
            flags: warnings of the attack's library that were raised since the last part ended.
        """


UNWATCHED = Watch()

_SLACK = 1e-3
"""How far beyond its limits, as a share of them, rounding may leave an image."""


class Source(NamedTuple):
    """Another classifier, and what tells it apart from every other."""

    model: nn.Module
    fingerprint: str


@dataclass(frozen=True)
class Surroundings:
    """What an attack may ask for besides the model and the images under attack.

    Args:
        class_names: in the order of the logits.
        classifier: returns another classifier for the same classes and images: ``zero-shot``, a run folder or a CLIP model.
        validation: returns validation images, which an attack may learn from: they are never those under attack.
        has_zero_shot: whether there is a ``zero-shot``.
    """

    class_names: tuple[str, ...]
    classifier: Callable[[str], Source]
    validation: Callable[[], AttackBatch]
    has_zero_shot: bool = False


class EvaluationAttack:
    """An attack that ``--attack`` can name. A subclass with a ``name`` and `__call__` is enough for one of your own."""

    name: str
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    """Threat models that it can attack within."""

    def limits(self, threat: ThreatModel) -> ThreatModel:
        """Return what its images stay within: ``threat``, unless the attack has a threat model of its own."""
        return threat

    def prepared(self, surroundings: Surroundings) -> EvaluationAttack:
        """Return the attack ready for this model and data; by default it needs nothing."""
        return self

    def depends_on(self) -> dict[str, str]:
        """Return what its outcomes depend on besides its name, the model, the images, eps and the seed."""
        return {}

    @property
    def needs_gradient(self) -> bool:
        """Whether it asks the model for gradients; one that does not applies to models without any."""
        return True

    def runs(self, n_classes: int) -> tuple[str, ...]:
        """Return the names of its parts for ``n_classes`` classes; by default itself."""
        return (self.name,)

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Return the model passes per batch of each part if no sample is fooled; one with a gradient counts twice."""
        return (200,) * len(self.runs(n_classes))

    def __call__(self, model: nn.Module, batch: AttackBatch, threat: ThreatModel, watch: Watch = UNWATCHED) -> Found:
        """Attack ``batch`` on ``model``, pixels (B,3,H,W) in [0,1] to logits (B,C); ``watch`` follows the parts."""
        raise TypeError(f"{type(self).__name__} must define __call__(model, batch, threat, watch)")

    def checked(self, found: Found, batch: AttackBatch, threat: ThreatModel) -> Found:
        """Return what the attack found in a copy of ``batch``: images that nobody could send would count as fooled ones.

        Raises:
            InputError: it is not a `Found`, or an image is outside of the attack's limits.
        """
        if not isinstance(found, Found) or len(found.by) != len(batch):
            raise InputError(
                f"The attack {self.name} must return a Found with images, and a name in `by` for each of them."
            )
        images, limits = like(batch.x, found.images, self.name), self.limits(threat)
        far = limits.distance(images, batch.x)
        # Written so that a value that is not a number is outside.
        inside = (far <= limits.eps * (1 + _SLACK) + 1e-6) & ((images - 0.5).abs() <= 0.5 + 1e-6).flatten(1).all(dim=1)
        if not bool(inside.all()):
            raise InputError(
                f"The attack {self.name} leaves its limits with {int((~inside).sum())} of {len(batch)} images: at most "
                f"{limits.norm} {limits.eps:.4g} and pixels in [0,1], but one is {float(far.max()):.4g} away. Return "
                "threat.project(images, x), or say with limits() what they stay within."
            )
        return found


@dataclass(frozen=True)
class ClimbingAttack(EvaluationAttack):
    """A training attack as an evaluation attack: on the cross-entropy, with one random start per sample.

    Args:
        name: what it is called in a result.
        attack: ``attack(objective, x, threat, seeds) -> x_adv``.
    """

    name: str
    attack: Attack

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Return the model passes per batch if no sample is fooled; one with a gradient counts twice."""
        return (2 * self.attack.passes,) if isinstance(self.attack, TrainingAttack) else (200,)

    def __call__(self, model: nn.Module, batch: AttackBatch, threat: ThreatModel, watch: Watch = UNWATCHED) -> Found:
        """Attack ``batch``; what another attack than PGD returns is projected into the ball."""
        watch.begin(self.name)
        objective = Objective(model, cross_entropy, batch.labels)
        seeds = sample_seeds(batch.ids, batch.seed, "start")
        images = like(batch.x, self.attack(objective, batch.x, threat, seeds), self.name)
        if not isinstance(self.attack, PGD):  # whose images are in the ball to the last bit
            images = threat.project(images, batch.x)
        return Found(images, [self.name] * len(batch))


@dataclass(frozen=True)
class Restarted(EvaluationAttack):
    """PGD on the margin from several random starts; fooled samples leave the batch.

    The margin keeps its gradient where a large logit scale saturates the softmax.

    Args:
        restarts: random starts.
        steps: steps of eps/10 from each.
    """

    restarts: int = 5
    steps: int = 50
    name: str = "margin-pgd"

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Return the model passes per batch if no sample is fooled; one with a gradient counts twice."""
        return (self.restarts * (2 * self.steps + 1),)

    def __call__(self, model: nn.Module, batch: AttackBatch, threat: ThreatModel, watch: Watch = UNWATCHED) -> Found:
        """Attack ``batch`` from one start after the other."""
        watch.begin(self.name)
        pgd = PGD(self.steps, step_size=0.1, leave=misclassified)

        def start(left: AttackBatch, number: int) -> Tensor:
            seeds = sample_seeds(left.ids, left.seed, self.name, number)
            return pgd(Objective(model, margin, left.labels), left.x, threat, seeds)

        return Found(repeated(start, self.restarts, model, batch), [self.name] * len(batch))


def answers(model: nn.Module, images: Tensor) -> Tensor:
    """Return the classes (B,) that a model gives to images.

    Raises:
        ApdError: logits that are not finite: an attack would take them for a wrong class.
    """
    with torch.no_grad():
        return finite(model(images)).argmax(dim=-1)


def repeated(attack: Callable[[AttackBatch, int], Tensor], times: int, model: nn.Module, batch: AttackBatch) -> Tensor:
    """Return images (B,3,H,W) of an attack that is repeated on what still stands, with the number of the repetition."""
    images, robust = batch.x.clone(), torch.arange(len(batch), device=batch.x.device)
    for number in range(times):
        if len(robust) == 0:
            break
        left = batch.select(robust)
        images[robust] = found = attack(left, number)
        robust = robust[answers(model, found) == left.labels]
    return images


def pgd_evaluation(steps: int) -> ClimbingAttack:
    """Return ``pgd-N``: cross-entropy, ``steps`` steps of eps/4 from a random start; fooled samples leave the batch."""
    return ClimbingAttack(f"pgd-{steps}", PGD(steps, leave=misclassified))


class _Inside(Watch):
    """Watches one part of a cascade, which itself tells where the part ends."""

    def __init__(self, outer: Watch) -> None:
        super().__init__()
        self.outer = outer

    def begin(self, part: str) -> None:
        """Pass it on."""
        self.outer.begin(part)


@dataclass(frozen=True)
class Cascade(EvaluationAttack):
    """The per-sample worst case over ``parts``; each gets only what the one before could not fool.

    Args:
        name: what it is called in a result.
        parts: in order, the cheapest first.
    """

    name: str
    parts: tuple[EvaluationAttack, ...]

    def prepared(self, surroundings: Surroundings) -> EvaluationAttack:
        """Prepare its parts."""
        return replace(self, parts=tuple(part.prepared(surroundings) for part in self.parts))

    def depends_on(self) -> dict[str, str]:
        """Return what its parts depend on; with the part's name where an earlier part has one of that name, such as a source."""
        found: dict[str, str] = {}
        for part in self.parts:
            for name, value in part.depends_on().items():
                keys = (
                    name,
                    f"{part.name} {name}",
                    *(f"{part.name} {name} {n}" for n in range(3, len(self.parts) + 1)),
                )
                found[next(key for key in keys if key not in found)] = value
        return found

    @property
    def needs_gradient(self) -> bool:
        """Whether any of its parts asks for gradients."""
        return any(part.needs_gradient for part in self.parts)

    def runs(self, n_classes: int) -> tuple[str, ...]:
        """Return the names of the attacks it is made of."""
        return tuple(run for part in self.parts for run in part.runs(n_classes))

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Return the model passes per batch of each part if no sample is fooled; one with a gradient counts twice."""
        return tuple(sum(part.part_passes(n_classes)) + 1 for part in self.parts)

    def __call__(self, model: nn.Module, batch: AttackBatch, threat: ThreatModel, watch: Watch = UNWATCHED) -> Found:
        """Attack ``batch`` part by part."""
        images, by, flags = batch.x.clone(), [""] * len(batch), Counter[str]()
        robust, done = torch.arange(len(batch), device=batch.x.device), Counter(watch.done)
        for part in self.parts:
            if len(robust) == 0:
                break
            if done[part.name]:  # once for each part of this name
                done[part.name] -= 1
                continue
            left = batch.select(robust)
            found = part.checked(part(model, left.copy(), threat, _Inside(watch)), left, threat)
            images[robust] = found.images
            flags += found.flags
            for i, name in zip(robust.tolist(), found.by, strict=True):
                by[i] = name
            predicted = answers(model, found.images)
            if part is not self.parts[-1]:
                watch.end(part.name, left.ids, predicted, found.flags)
            robust = robust[predicted == left.labels]
        return Found(images, by, flags)
