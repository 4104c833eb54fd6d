"""Targeted attacks: towards one class, or towards each other class in turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from apd.attacks.evaluation import (
    UNWATCHED,
    AttackBatch,
    EvaluationAttack,
    Found,
    Surroundings,
    Watch,
    answers,
    repeated,
)
from apd.attacks.objectives import Objective, margin
from apd.attacks.pgd import PGD
from apd.attacks.threat import ThreatModel
from apd.errors import InputError, nearest
from apd.util.seeds import sample_seeds

EACH = "targeted"


def towards(z: Tensor, pair: Tensor) -> Tensor:
    """``z_t - z_y`` of logits (B, C) and pairs (B, 2) of label y and target t: the loss of a targeted attack."""
    label, target = z.gather(1, pair).unbind(dim=1)
    return target - label


def onto(z: Tensor, target: Tensor) -> Tensor:
    """``z_t - max_{j != t} z_j`` of logits (B, C) and targets (B,): positive where the image is taken for the target."""
    return -margin(z, target)


def _reached(z: Tensor, target: Tensor) -> Tensor:
    return z.argmax(dim=-1) == target


def _left(z: Tensor, pair: Tensor) -> Tensor:
    return z.argmax(dim=-1) != pair[:, 0]


@dataclass(frozen=True)
class MultiTargeted(EvaluationAttack):
    """PGD towards each other class in turn, the likeliest first (Gowal 2019, arXiv 1910.09338); any wrong class counts.

    AutoAttack tries the nine likeliest classes; here an unlikely class with a steep logit is found too.

    Args:
        steps: steps of eps/10 towards each class.
        most: classes that are tried; with these steps, 80 take no more passes than Square.
    """

    steps: int = 30
    most: int = 80
    name: str = EACH

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Return the model passes per batch if no sample is fooled; one with a gradient counts twice."""
        return (1 + min(self.most, n_classes - 1) * (2 * self.steps + 1),)

    def __call__(self, model: nn.Module, batch: AttackBatch, threat: ThreatModel, watch: Watch = UNWATCHED) -> Found:
        """Attack ``batch`` towards one class after the other."""
        watch.begin(self.name)
        with torch.no_grad():
            order = model(batch.x).argsort(dim=-1, descending=True)
        others = order[order != batch.labels[:, None]].view(len(batch), -1)
        likeliest = dict(zip(batch.ids, others, strict=True))
        pgd = PGD(self.steps, step_size=0.1, leave=_left)

        def climb(left: AttackBatch, rank: int) -> Tensor:
            targets = torch.stack([likeliest[id_][rank] for id_ in left.ids])
            pairs = torch.stack([left.labels, targets], dim=1)
            return pgd(
                Objective(model, towards, pairs), left.x, threat, sample_seeds(left.ids, left.seed, self.name, rank)
            )

        images = repeated(climb, min(self.most, others.shape[1]), model, batch)
        return Found(images, [self.name] * len(batch))


@dataclass(frozen=True)
class Targeted(EvaluationAttack):
    """PGD towards one class from several random starts. Images that do not become that class stay as they were.

    So the accuracy under it is the share of images that the attacker cannot turn into the class.

    Args:
        target: the class, by name or by number.
        steps: steps of eps/10 from each start.
        restarts: random starts.
        index: the class's number, known once the attack is prepared.
    """

    target: str
    steps: int = 100
    restarts: int = 3
    index: int | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        """What it is called in a result."""
        return f"{EACH}:{self.target}"

    def depends_on(self) -> dict[str, str]:
        """Return what is climbed, as outcomes against the true class alone are not this attack's, and the class's number."""
        return {"objective": onto.__name__, **({} if self.index is None else {"class": str(self.index)})}

    def prepared(self, surroundings: Surroundings) -> Targeted:
        """Look up the class.

        Raises:
            InputError: neither a class name nor a class's number.
        """
        names = surroundings.class_names
        if self.target in names:
            return Targeted(self.target, self.steps, self.restarts, names.index(self.target))
        if self.target.isdecimal() and int(self.target) < len(names):
            return Targeted(self.target, self.steps, self.restarts, int(self.target))
        raise InputError(f"{self.name}: no class {self.target!r}. {nearest(self.target, names)}")

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Return the model passes per batch if no sample is fooled; one with a gradient counts twice."""
        return (self.restarts * (2 * self.steps + 2),)

    def __call__(self, model: nn.Module, batch: AttackBatch, threat: ThreatModel, watch: Watch = UNWATCHED) -> Found:
        """Attack ``batch`` towards the class.

        Raises:
            InputError: it is not prepared, and its target is a name.
        """
        watch.begin(self.name)
        if self.index is None and not self.target.isdecimal():
            raise InputError(f"{self.name} needs the class names: give the class's number, or call prepared() first.")
        target = int(self.target) if self.index is None else self.index
        pgd = PGD(self.steps, step_size=0.1, leave=_reached)

        def climb(left: AttackBatch, number: int) -> Tensor:
            wanted = torch.full_like(left.labels, target)
            seeds = sample_seeds(left.ids, left.seed, self.name, number)
            found = pgd(Objective(model, onto, wanted), left.x, threat, seeds)
            there = (answers(model, found) == target) & (left.labels != target)
            return torch.where(there.view(-1, 1, 1, 1), found, left.x)

        return Found(repeated(climb, self.restarts, model, batch), [self.name] * len(batch))
