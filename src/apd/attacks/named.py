"""The table of evaluation attacks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from types import FunctionType

from apd.attacks import libraries
from apd.attacks.autoattack import BLACK_BOX, LibraryAttack
from apd.attacks.base import TrainingAttack
from apd.attacks.bpda import StraightThrough
from apd.attacks.evaluation import Cascade, ClimbingAttack, EvaluationAttack, Restarted, pgd_evaluation
from apd.attacks.minimal import FMN, CarliniWagner
from apd.attacks.patch import PATTERN, Patch
from apd.attacks.stochastic import EoT
from apd.attacks.strong import Strong
from apd.attacks.targeted import MultiTargeted, Targeted
from apd.attacks.transfer import Transfer
from apd.attacks.universal import Universal
from apd.errors import InputError, nearest
from apd.models.fingerprint import told
from apd.util.code import code_hash
from apd.util.plugins import Registry, is_spec

EVALUATION: dict[str, str] = {
    "clean": "no attack",
    "pgd-N": "PGD with N steps of eps/4 on the cross-entropy from one random start",
    "apgd-ce": "APGD on the cross-entropy, 100 iterations",
    "apgd-dlr": "APGD on the difference of logits ratio, 100 iterations (on the margin with 2 classes)",
    "apgd-ce+dlr": "PGD-10, APGD-CE and APGD-DLR, each on what the one before could not fool",
    "fab": "FAB, untargeted: a minimum-norm attack, 100 iterations",
    "square": "Square, 5,000 queries: a black box, which sees logits and no gradients",
    "autoattack": "APGD-CE, APGD-T, FAB-T and Square; with 2 or 3 classes APGD-CE, APGD on the margin, FAB and Square",
    "strong": "AutoAttack, and what it leaves: PGD on the margin with restarts, PGD towards each class, FMN, and "
    "BPDA and transfer from zero-shot CLIP where they apply",
    "margin-pgd": "PGD-50 on the margin, from five random starts",
    "targeted": "PGD-30 towards each other class, the 80 likeliest at most",
    "targeted:CLASS": "PGD-100 towards one class; images that do not become it count as right",
    "fmn": "FMN, 200 steps: the smallest perturbation, which counts if it is within eps",
    "cw": "Carlini-Wagner, the same for L2 only",
    "transfer:SOURCE": "black box: images made on zero-shot CLIP (transfer:zero-shot), a run folder, a CLIP model, or what "
    "taught a run (transfer:teacher, without prompts tuned for that run alone)",
    "universal": "one perturbation for all images, learned on validation images",
    "patch-P": "a square of any pixels on P % of the image, at a random place (patch-5) or a fixed one (patch-5:center)",
    "eot-N": "for classifiers that give random answers: PGD-40, gradients averaged over N draws",
    "foolbox:NAME": "an attack of foolbox or torchattacks, with settings: foolbox:LinfPGD(steps=20)",
    "bpda": "for classifiers with a cut or zero gradient: PGD on the margin, straight past what blocks it",
}
"""Evaluation attacks by name, each with a line for a person."""

# Most samples are fooled within a few steps of PGD, whose batch shrinks; the library's APGD runs on to the end.
_CASCADE = (pgd_evaluation(10), LibraryAttack("apgd-ce"), LibraryAttack("apgd-dlr"))

_WHOLE = (Strong(), Restarted(), MultiTargeted(), FMN(), CarliniWagner(), StraightThrough(), Universal())

_BUILT_IN: dict[str, object] = {
    **{name: LibraryAttack(name) for name in ("apgd-ce", "apgd-dlr", "fab", "square", "autoattack")},
    "apgd-ce+dlr": Cascade("apgd-ce+dlr", _CASCADE),
    **{attack.name: attack for attack in _WHOLE},
}

_MADE: tuple[tuple[str, Callable[[str], EvaluationAttack]], ...] = (
    (r"pgd-\d+", lambda name: _pgd(name)),
    (r"targeted:.+", lambda name: Targeted(name.partition(":")[2])),
    (r"transfer:.+", lambda name: Transfer(name.partition(":")[2])),
    (r"eot-\d+", lambda name: EoT(int(name.removeprefix("eot-")))),
    (PATTERN, Patch.named),
    (libraries.PATTERN, libraries.library_attack),
)
"""Patterns of names that stand for many attacks, and what makes one of a name."""
_EXAMPLES = {
    "pgd-N": "pgd-20",
    "eot-N": "eot-20",
    "patch-P": "patch-5",
    "transfer:SOURCE": "transfer:zero-shot",
    "foolbox:NAME": "foolbox:LinfPGD",
}


def _problem(found: object) -> str | None:
    kind = found if isinstance(found, type) else type(found)
    for base, call in (
        (EvaluationAttack, "model, batch, threat, watch"),
        (TrainingAttack, "objective, x, threat, seeds"),
    ):
        if issubclass(kind, base):
            return None if kind.__call__ is not base.__call__ else f"does not define __call__({call}), which attacks"
    if _plain(found):
        return None
    return "is not an EvaluationAttack, a TrainingAttack, or a function (model, x, labels, eps) or (objective, x, threat, seeds)"


def _plain(found: object) -> bool:
    return callable(found) and not isinstance(found, type)


EVALUATION_ATTACKS: Registry[object] = Registry("attack", "apd.evaluation_attacks", _BUILT_IN, _problem)
"""Evaluation attacks; those of `EVALUATION` that stand for many, such as ``pgd-N``, are made by `find`."""


def find(name: str) -> EvaluationAttack:
    """Return the evaluation attack of a name: of `EVALUATION`, another package's, or ``package.module:name``.

    Raises:
        InputError: an unknown name, ``clean``, or ``pgd-0``.

    >>> find("pgd-20").name
    'pgd-20'
    """
    if name == "clean":
        raise InputError("clean does not change images; name an attack that does, such as pgd-20.")
    for pattern, make in _MADE:
        if re.fullmatch(pattern, name):
            return make(name)
    if not is_spec(name) and not EVALUATION_ATTACKS.knows(name):
        number = re.search(r"\d+$", name)
        known = [n.replace("-N", f"-{number[0]}") if number else _EXAMPLES.get(n, n) for n in EVALUATION]
        raise InputError(f"Unknown attack {name!r}. {nearest(name, known, EVALUATION)}")
    return _as_evaluation(name, EVALUATION_ATTACKS.find(name))


def reads_gradients(name: str) -> bool:
    """Whether an attack of this name asks the model under attack for gradients; no code of other packages is run to know.

    >>> reads_gradients("autoattack"), reads_gradients("square"), reads_gradients("transfer:zero-shot")
    (True, False, False)
    """
    return name != BLACK_BOX and not name.startswith("transfer:")


def _pgd(name: str) -> EvaluationAttack:
    steps = int(name.removeprefix("pgd-"))
    if steps < 1:
        raise InputError(f"Attack {name!r} has no steps; use pgd-1 or more, or clean.")
    return pgd_evaluation(steps)


def name_of(attack: object) -> str:
    """Return the name by which `find` knows an attack that was given as an object; names stay.

    An instance's settings are part of its name, so that outcomes of other settings are not taken for its own.

    Raises:
        InputError: what is not an attack.
    """
    if isinstance(attack, str):
        return attack
    settings = ", ".join(f"{key}={value}" for key, value in _settings(attack).items())
    return EVALUATION_ATTACKS.name_of(attack, f"({settings})" if settings else "")


def alike(one: object, other: object) -> bool:
    """Whether two attacks of the same name are the same attack: of a class of attacks, the name tells all settings."""
    return one is other or (type(one) is type(other) and isinstance(one, EvaluationAttack | TrainingAttack))


def _settings(attack: object) -> dict[str, str]:
    """What an instance holds, as text; of a dataclass the fields that differ from their defaults."""
    if isinstance(attack, type):
        return {}
    if not isinstance(attack, EvaluationAttack | TrainingAttack):
        held = getattr(attack, "__dict__", {}) if not isinstance(attack, FunctionType) else {}
        known = {
            name: repr(value) for name, value in sorted(held.items()) if isinstance(value, str | int | float | None)
        }
        # What would be too long for a name: lists, tensors, an attack inside of the attack. An address is never the same again.
        others = {name: told(value) for name, value in sorted(held.items()) if name not in known}
        others = {name: text for name, text in others.items() if not re.search(r"\b0x[0-9a-fA-F]{6,}", text)}
        return known | ({"others": hashlib.sha256(repr(others).encode()).hexdigest()[:8]} if others else {})
    if not is_dataclass(attack):
        return {name: told(value) for name, value in sorted(vars(attack).items())}
    default = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(attack)}
    found = {name: told(getattr(attack, name)) for name in default}
    return {name: value for name, value in found.items() if value != told(default[name])}


def code_of(name: str) -> str | None:
    """Return a hash of the source of an attack from elsewhere, on which its outcomes depend; None for built-in ones."""
    if name == "clean" or name in EVALUATION_ATTACKS or any(re.fullmatch(pattern, name) for pattern, _ in _MADE):
        return None
    return code_hash(EVALUATION_ATTACKS.find(name))


def _as_evaluation(name: str, found: object) -> EvaluationAttack:
    made = EVALUATION_ATTACKS.made(name, found) if isinstance(found, type) else found
    if isinstance(made, EvaluationAttack):
        if not getattr(made, "name", None):
            raise InputError(f"The attack {name!r} has no name; set the attribute name, what it is called in a result.")
        return made
    if not isinstance(made, TrainingAttack) and (foreign := libraries.adapted(name, made)) is not None:
        return foreign
    return ClimbingAttack(name, made)  # type: ignore[arg-type]
