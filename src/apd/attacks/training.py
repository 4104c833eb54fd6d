"""The table of training attacks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from apd.attacks.base import TrainingAttack
from apd.attacks.fgsm import FGSMRS, NFGSM
from apd.attacks.noise import Noise
from apd.attacks.objectives import LOSSES
from apd.attacks.persistent import Carried, Replayed
from apd.attacks.pgd import PGD
from apd.errors import InputError
from apd.util.plugins import Registry


def _problem(found: object) -> str | None:
    if not (isinstance(found, type) and issubclass(found, TrainingAttack)):
        return "is not a class derived from apd.attacks.TrainingAttack"
    if found.__call__ is TrainingAttack.__call__ and not found.moves_with_prompts:
        return "does not define __call__(objective, x, threat, seeds), which attacks"
    return None


TRAINING_ATTACKS: Registry[type[TrainingAttack]] = Registry(
    "training attack",
    "apd.attacks",
    {"pgd": PGD, "fgsm-rs": FGSMRS, "n-fgsm": NFGSM, "free": Replayed, "carried": Carried, "noise": Noise},
    _problem,
)
"""What ``train.attack.kind`` names."""


def attack_section(attack: str | Mapping[str, Any] | TrainingAttack | type[TrainingAttack]) -> dict[str, Any]:
    """Write an attack as the section ``train.attack``: classes, instances and functions by their names.

    Raises:
        InputError: an instance with settings that a run could not record.
    """
    if isinstance(attack, str):
        return {"kind": attack}
    if isinstance(attack, Mapping):
        kind, loss = attack.get("kind"), attack.get("loss")
        section = dict(attack)
        if kind is not None:
            section |= attack_section(kind)
        return {**section, "loss": LOSSES.name_of(loss)} if callable(loss) else section
    if isinstance(attack, type):
        return {"kind": TRAINING_ATTACKS.name_of(attack)}
    kind = TRAINING_ATTACKS.name_of(type(attack))
    if isinstance(attack, PGD) and kind in TRAINING_ATTACKS:
        if attack.leave is not None:
            raise InputError("A PGD with leave cannot be recorded; give {'kind': 'pgd', 'stop_margin': …} instead.")
        return {"kind": kind, "steps": attack.steps, "step_size": attack.step_size, "random_start": attack.random_start}
    if not TRAINING_ATTACKS.find(kind).takes_options():
        raise InputError(
            f"An instance of {kind} cannot be recorded; give {{'kind': {kind!r}}} with its settings instead."
        )
    options = _options(kind, attack)
    return {"kind": kind, "options": options} if options else {"kind": kind}


def _options(kind: str, attack: TrainingAttack) -> dict[str, Any]:
    """The fields of an instance, as JSON keeps them."""
    if not is_dataclass(attack):
        if vars(attack):
            raise InputError(
                f"The training attack {kind} has settings; make it a dataclass, so that a run records them."
            )
        return {}
    found = {}
    for field in fields(attack):
        value = getattr(attack, field.name)
        try:
            found[field.name] = json.loads(json.dumps(value))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"The training attack {kind} has {field.name}={type(value).__name__}, which a run cannot record; use "
                "numbers, text, lists or mappings."
            ) from error
    return found
