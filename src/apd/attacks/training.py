"""The table of training attacks."""

from __future__ import annotations

from apd.attacks.base import TrainingAttack
from apd.attacks.fgsm import FGSMRS, NFGSM
from apd.attacks.persistent import Carried, Replayed
from apd.attacks.pgd import PGD
from apd.util.plugins import Registry


def _problem(found: object) -> str | None:
    if isinstance(found, type) and issubclass(found, TrainingAttack):
        return None
    return "is not a class derived from apd.attacks.TrainingAttack"


TRAINING_ATTACKS: Registry[type[TrainingAttack]] = Registry(
    "training attack",
    "apd.attacks",
    {"pgd": PGD, "fgsm-rs": FGSMRS, "n-fgsm": NFGSM, "free": Replayed, "carried": Carried},
    _problem,
)
"""What ``train.attack.kind`` names."""
