"""The table of evaluation attacks."""

from __future__ import annotations

import hashlib
import inspect
import re
from types import FunctionType

from apd.attacks.autoattack import LibraryAttack
from apd.attacks.base import TrainingAttack
from apd.attacks.evaluation import Cascade, ClimbingAttack, EvaluationAttack, pgd_evaluation
from apd.errors import InputError, nearest
from apd.util.plugins import Registry, is_spec

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


_REGISTRY: Registry[object] = Registry("attack", "apd.evaluation_attacks", _BUILT_IN, _problem)


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
    if not is_spec(name) and not _REGISTRY.knows(name):
        raise InputError(
            f"Unknown attack {name!r}. {nearest(name, [n.replace('N', '20') for n in EVALUATION], EVALUATION)}"
        )
    return _as_evaluation(name, _REGISTRY.find(name))


def name_of(attack: object) -> str:
    """Return the name by which `find` knows an attack that was given as an object; names stay.

    An instance's settings are part of its name, so that outcomes of other settings are not taken for its own.

    Raises:
        InputError: what is not an attack.
    """
    if isinstance(attack, str):
        return attack
    state = {} if isinstance(attack, type) else getattr(attack, "__dict__", {})
    settings = ", ".join(f"{key}={value!r}" for key, value in sorted(state.items()))
    return _REGISTRY.name_of(attack, f"({settings})" if settings else "")


def code_of(name: str) -> str | None:
    """Return a hash of the source of an attack from elsewhere, on which its outcomes depend; None for built-in ones."""
    if name == "clean" or re.fullmatch(r"pgd-\d+", name) or name in _REGISTRY:
        return None
    found = _REGISTRY.find(name)
    try:
        source = inspect.getsource(found if isinstance(found, type | FunctionType) else type(found))
    except (OSError, TypeError):
        source = repr(found)
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _as_evaluation(name: str, found: object) -> EvaluationAttack:
    made = found() if isinstance(found, type) else found
    if isinstance(made, EvaluationAttack):
        return made
    return ClimbingAttack(name, made)  # type: ignore[arg-type]
