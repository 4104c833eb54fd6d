"""The table of training attacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from apd.attacks.base import TrainingAttack
from apd.attacks.fgsm import FGSMRS, NFGSM
from apd.attacks.objectives import LOSSES
from apd.attacks.persistent import Carried, Replayed
from apd.attacks.pgd import PGD
from apd.errors import InputError
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


def attack_section(attack: str | Mapping[str, Any] | TrainingAttack) -> dict[str, Any]:
    """Write an attack as the section ``train.attack``: classes, instances and functions by their names.

    Raises:
        InputError: an instance whose state is not its dataclass fields, which a run could not record.
    """
    if isinstance(attack, str):
        return {"kind": attack}
    if isinstance(attack, Mapping):
        loss = attack.get("loss")
        section = dict(attack)
        if isinstance(attack.get("kind"), TrainingAttack):
            section = {**section, **attack_section(attack["kind"])}
        return {**section, "loss": LOSSES.name_of(loss)} if callable(loss) else section
    kind = TRAINING_ATTACKS.name_of(type(attack))
    state = {f.name: getattr(attack, f.name) for f in fields(attack)} if is_dataclass(attack) else dict(vars(attack))
    if state and not is_dataclass(attack):
        raise InputError(
            f"The training attack {kind} has settings of its own; make it a dataclass, so that a run records them."
        )
    if kind in TRAINING_ATTACKS:
        return {"kind": kind, **{name: value for name, value in state.items() if value is not None}}
    return {"kind": kind, "options": state} if state else {"kind": kind}
