"""Attacks: within a threat model, find images that a classifier gets wrong.

Training attacks have the form `Attack`. Evaluation attacks (`find`) are given by name, get
the whole classifier, and are handed only samples that still stand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from apd.attacks.autoattack import Found, LibraryAttack
from apd.attacks.base import UNWATCHED, Attack, Objective, Watch, sample_seeds
from apd.attacks.cascade import Cascade
from apd.attacks.fgsm import FGSMRS, NFGSM
from apd.attacks.friendly import FriendlyPGD
from apd.attacks.objectives import cross_entropy, dlr, kl, kl_from_logits, kl_of_pair, margin
from apd.attacks.pgd import PGD
from apd.attacks.threat import ThreatModel
from apd.errors import InputError, nearest

EVALUATION: dict[str, str] = {
    "clean": "no attack",
    "pgd-N": "PGD with N steps of eps/4 on the cross-entropy from one random start",
    "apgd-ce": "APGD on the cross-entropy, 100 iterations",
    "apgd-dlr": "APGD on the difference of logits ratio, 100 iterations (on the margin with 2 classes)",
    "apgd-ce+dlr": "PGD-10, APGD-CE and APGD-DLR, each on what the one before left standing",
    "autoattack": "APGD-CE, APGD-T, FAB-T and Square; with 2 or 3 classes APGD-CE, APGD on the margin, FAB and Square",
}
"""Attacks for evaluation, by name, each with a line for a person."""


class EvaluationAttack(Protocol):
    """An attack on a whole classifier, on correctly classified samples."""

    @property
    def name(self) -> str:
        """What it is called in a result."""
        ...

    def runs(self, n_classes: int) -> tuple[str, ...]:
        """The attacks it is made of, for so many classes."""
        ...

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Passes of the model on a batch in each part, if no sample falls; one with a gradient counts twice."""
        ...

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        ids: list[str],
        seed: int,
        watch: Watch = UNWATCHED,
    ) -> Found:
        """Attack images ``x`` (B,3,H,W) in [0,1] that ``model`` classifies as ``labels`` (B,); ``watch`` follows its parts."""
        ...


@dataclass(frozen=True)
class PGDEvaluation:
    """``pgd-N``: cross-entropy, steps of eps/4, one random start a sample; fooled samples leave the batch.

    Args:
        steps: N.
    """

    steps: int

    @property
    def name(self) -> str:
        """``pgd-N``."""
        return f"pgd-{self.steps}"

    def runs(self, n_classes: int) -> tuple[str, ...]:
        """Itself."""
        return (self.name,)

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Passes of the model on a batch, if no sample falls; one with a gradient counts twice."""
        return (2 * self.steps + 1,)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        ids: list[str],
        seed: int,
        watch: Watch = UNWATCHED,
    ) -> Found:
        """Attack images ``x`` (B,3,H,W) in [0,1] that ``model`` classifies as ``labels`` (B,); ``watch`` follows its parts."""
        watch.begin(self.name)
        objective = Objective(model, cross_entropy, labels)
        images = PGD(self.steps).search(objective, x, threat, sample_seeds(ids, seed, "start"), misclassified)
        return Found(images, [self.name] * len(x))


def misclassified(z: Tensor, labels: Tensor) -> Tensor:
    """Which samples (B,) the logits ``z`` (B,C) get wrong."""
    return z.argmax(dim=-1) != labels


def find(name: str) -> EvaluationAttack:
    """The evaluation attack of this name.

    Raises:
        InputError: an unknown name, or ``pgd-0``.

    >>> find("pgd-20").name
    'pgd-20'
    """
    if re.fullmatch(r"pgd-\d+", name):
        steps = int(name.removeprefix("pgd-"))
        if steps < 1:
            raise InputError(f"Attack {name!r} has no steps; use pgd-1 or more, or clean.")
        return PGDEvaluation(steps)
    if name in ("apgd-ce", "apgd-dlr", "autoattack"):
        return LibraryAttack(name)
    if name == "apgd-ce+dlr":
        # Most samples fall within a few steps of PGD, whose batch shrinks; the library's APGD runs on to the end.
        return Cascade(name, (PGDEvaluation(10), LibraryAttack("apgd-ce"), LibraryAttack("apgd-dlr")))
    raise InputError(
        f"Unknown attack {name!r}. {nearest(name, [n.replace('N', '20') for n in EVALUATION], EVALUATION)}"
    )


__all__ = [
    "EVALUATION",
    "FGSMRS",
    "NFGSM",
    "PGD",
    "Attack",
    "Cascade",
    "EvaluationAttack",
    "Found",
    "FriendlyPGD",
    "Objective",
    "Watch",
    "cross_entropy",
    "dlr",
    "find",
    "kl",
    "kl_from_logits",
    "kl_of_pair",
    "margin",
    "misclassified",
    "sample_seeds",
]
