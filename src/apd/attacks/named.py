"""The table of evaluation attacks."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields, is_dataclass

from apd.attacks.autoattack import LibraryAttack
from apd.attacks.base import TrainingAttack
from apd.attacks.evaluation import Cascade, ClimbingAttack, EvaluationAttack, pgd_evaluation
from apd.errors import InputError, nearest
from apd.util.plugins import Registry, code_hash, is_spec

EVALUATION: dict[str, str] = {
    "clean": "no attack",
    "pgd-N": "PGD with N steps of eps/4 on the cross-entropy from one random start",
    "apgd-ce": "APGD on the cross-entropy, 100 iterations",
    "apgd-dlr": "APGD on the difference of logits ratio, 100 iterations (on the margin with 2 classes)",
    "apgd-ce+dlr": "PGD-10, APGD-CE and APGD-DLR, each on what the one before could not fool",
    "autoattack": "APGD-CE, APGD-T, FAB-T and Square; with 2 or 3 classes APGD-CE, APGD on the margin, FAB and Square",
}
"""Evaluation attacks by name, each with a line for a person."""

# Most samples are fooled within a few steps of PGD, whose batch shrinks; the library's APGD runs on to the end.
_CASCADE = (pgd_evaluation(10), LibraryAttack("apgd-ce"), LibraryAttack("apgd-dlr"))

_BUILT_IN: dict[str, object] = {
    **{name: LibraryAttack(name) for name in ("apgd-ce", "apgd-dlr", "autoattack")},
    "apgd-ce+dlr": Cascade("apgd-ce+dlr", _CASCADE),
}


def _problem(found: object) -> str | None:
    if isinstance(found, type):
        found = found.__new__(found) if issubclass(found, EvaluationAttack | TrainingAttack) else None
    return (
        None
        if isinstance(found, EvaluationAttack | TrainingAttack) or _plain(found)
        else ("is not an EvaluationAttack, a TrainingAttack or a function (objective, x, threat, seeds)")
    )


def _plain(found: object) -> bool:
    return callable(found) and not isinstance(found, type)


EVALUATION_ATTACKS: Registry[object] = Registry("attack", "apd.evaluation_attacks", _BUILT_IN, _problem)
"""Evaluation attacks; those of `EVALUATION` that stand for many, such as ``pgd-N``, are made by `find`."""


def find(name: str) -> EvaluationAttack:
    """Return the evaluation attack of a name: of `EVALUATION`, another package's, or ``package.module:name``.

    Raises:
        InputError: an unknown name, or ``pgd-0``.

    >>> find("pgd-20").name
    'pgd-20'
    """
    if re.fullmatch(r"pgd-\d+", name):
        steps = int(name.removeprefix("pgd-"))
        if steps < 1:
            raise InputError(f"Attack {name!r} has no steps; use pgd-1 or more, or clean.")
        return pgd_evaluation(steps)
    if not is_spec(name) and not EVALUATION_ATTACKS.knows(name):
        raise InputError(
            f"Unknown attack {name!r}. {nearest(name, [n.replace('N', '20') for n in EVALUATION], EVALUATION)}"
        )
    return _as_evaluation(name, EVALUATION_ATTACKS.find(name))


def name_of(attack: object) -> str:
    """Return the name by which `find` knows an attack that was given as an object; names stay.

    An instance's settings are part of its name, so that outcomes of other settings are not taken for its own.

    Raises:
        InputError: what is not an attack.
    """
    if isinstance(attack, str):
        return attack
    settings = ", ".join(f"{key}={value!r}" for key, value in _settings(attack).items())
    return EVALUATION_ATTACKS.name_of(attack, f"({settings})" if settings else "")


def _settings(attack: object) -> dict[str, object]:
    """What an instance holds; of a dataclass the fields that differ from their defaults."""
    if isinstance(attack, type) or not isinstance(attack, EvaluationAttack | TrainingAttack):
        return {}
    if not is_dataclass(attack):
        return dict(sorted(vars(attack).items()))
    default = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(attack)}
    # By repr: the values may be tensors.
    found = {name: getattr(attack, name) for name in default}
    return {name: value for name, value in found.items() if repr(value) != repr(default[name])}


def code_of(name: str) -> str | None:
    """Return a hash of the source of an attack from elsewhere, on which its outcomes depend; None for built-in ones."""
    if name == "clean" or re.fullmatch(r"pgd-\d+", name) or name in EVALUATION_ATTACKS:
        return None
    return code_hash(EVALUATION_ATTACKS.find(name))


def _as_evaluation(name: str, found: object) -> EvaluationAttack:
    made = EVALUATION_ATTACKS.made(name, found) if isinstance(found, type) else found
    if isinstance(made, EvaluationAttack):
        return made
    return ClimbingAttack(name, made)  # type: ignore[arg-type]
