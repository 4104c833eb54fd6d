"""Attacks of other libraries by name, and functions of the usual form ``attack(model, x, labels, eps)``."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from apd.attacks.base import like
from apd.attacks.evaluation import UNWATCHED, AttackBatch, EvaluationAttack, Found, Watch
from apd.attacks.threat import ThreatModel
from apd.errors import ApdError, InputError
from apd.util.memory import is_out_of_memory
from apd.util.seeds import own_random_numbers
from apd.util.text import one_line

PATTERN = r"(foolbox|torchattacks):\w+(\(.*\))?"
"""``foolbox:LinfPGD`` or ``torchattacks:PGD(steps=20)``: a class of the library and what its constructor takes."""

Attacker = Callable[[nn.Module, Tensor, Tensor, ThreatModel], Tensor]
"""``attacker(model, x, labels, threat) -> x_adv``."""

_NORMS = {1.0: "l1", 2.0: "l2", float("inf"): "linf"}


@dataclass(frozen=True)
class Foreign(EvaluationAttack):
    """An attack from elsewhere. What it returns is projected into the threat model.

    Random numbers of PyTorch's global generators are seeded, and the generators left as they were; what it draws depends on the
    batch.

    Args:
        name: what it is called in a result.
        attacker: called with the model, images, labels and the threat model.
        library: the package that it comes from; None: not a library by name.
    """

    name: str
    attacker: Attacker = field(repr=False)
    library: str | None = None

    def depends_on(self) -> dict[str, str]:
        """Return the version of its library."""
        return {} if self.library is None else {self.library: _version(self.library)}

    def __call__(self, model: nn.Module, batch: AttackBatch, threat: ThreatModel, watch: Watch = UNWATCHED) -> Found:
        """Attack ``batch``.

        Raises:
            InputError: it returns something else than images of the same shape; its library raises an error.
        """
        watch.begin(self.name)
        with own_random_numbers(batch.x.device), torch.enable_grad():
            torch.manual_seed(batch.seed)
            try:
                images = self.attacker(model, batch.x.clone(), batch.labels, threat)
            except ApdError:
                raise
            except Exception as error:
                if self.library is None or is_out_of_memory(error):
                    raise
                why = f"{type(error).__name__}: {one_line(error, 300)}"
                raise InputError(
                    f"{self.name} does not run on these images ({why}); change its settings, or leave it out."
                ) from error
        return Found(threat.project(like(batch.x, images, self.name), batch.x), [self.name] * len(batch))


def library_attack(name: str) -> Foreign:
    """Return the attack of a name such as ``foolbox:LinfPGD(steps=20)``; the library is imported when it attacks.

    Raises:
        InputError: what stands in parentheses is not keyword arguments with plain values.
    """
    library, _, call = name.partition(":")
    kind, options = _parsed(call, name)
    make = _LIBRARIES[library]
    return Foreign(name, make(name, kind, options), library)


def largest_setting(name: str) -> int:
    """Return the largest whole number among the settings in the name of a library's attack; 0 without any, or for others.

    >>> largest_setting("foolbox:LinfPGD(steps=+0xff, abs_stepsize=1e6)"), largest_setting("pgd-20")
    (255, 0)
    """
    library, _, call = name.partition(":")
    if library not in _LIBRARIES:
        return 0
    values = list(_parsed(call, name)[1].values())
    found = [0]
    while values:
        value = values.pop()
        if isinstance(value, list | tuple | set):
            values += value
        elif isinstance(value, int):
            found.append(value)
    return max(found)


def adapted(name: str, found: object) -> EvaluationAttack | None:
    """Return an attack of another library, or a function of a model, images, labels and eps, as an evaluation attack.

    None for anything else, such as a function of an objective.
    """
    if type(found).__module__.partition(".")[0] == "foolbox":
        return Foreign(name, lambda model, x, labels, threat: _run_foolbox(name, found, model, x, labels, threat))
    if isinstance(found, type) or not callable(found):
        return None
    try:
        first = next(iter(inspect.signature(found).parameters), "")
    except ValueError:  # a function without a signature, of a C library
        return None
    if first != "model":
        return None
    return Foreign(name, lambda model, x, labels, threat: found(model, x, labels, threat.eps))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _parsed(call: str, name: str) -> tuple[str, dict[str, Any]]:
    kind, _, rest = call.partition("(")
    if not rest:
        return kind, {}
    try:
        tree = ast.parse(f"f({rest}", mode="eval").body
        assert isinstance(tree, ast.Call) and not tree.args and all(word.arg for word in tree.keywords)
        return kind, {str(word.arg): ast.literal_eval(word.value) for word in tree.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise InputError(f"{name}: write settings as keywords with plain values, such as {kind}(steps=20).") from error


def _made(name: str, module: str, kind: str, make: Callable[[Any], Any]) -> Any:
    """Import a library and make its attack.

    Raises:
        InputError: the library is not installed, has no such attack, or refuses the settings.
    """
    library = module.partition(".")[0]
    try:
        found = import_module(module)
    except ImportError as error:
        raise InputError(f"{name} needs the package {library}: pip install {library}") from error
    if not isinstance(getattr(found, kind, None), type):
        raise InputError(f"{name}: {library} has no attack {kind!r}.")
    try:
        return make(getattr(found, kind))
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} cannot be made ({one_line(error)}).") from error


def _of_foolbox(name: str, kind: str, options: dict[str, Any]) -> Attacker:
    def attack(model: nn.Module, x: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        made = _made(name, "foolbox.attacks", kind, lambda cls: cls(**options))
        return _run_foolbox(name, made, model, x, labels, threat)

    return attack


def _run_foolbox(name: str, attack: Any, model: nn.Module, x: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    norm = _NORMS.get(float(getattr(attack.distance, "p", float("nan"))))
    _check_norm(name, [norm] if norm else [], threat)
    wrapped = import_module("foolbox").PyTorchModel(model.eval(), bounds=(0, 1), device=x.device)
    _, clipped, _ = attack(wrapped, x, labels, epsilons=threat.eps)
    images: Tensor = clipped
    return images


def _check_norm(name: str, norms: Sequence[str], threat: ThreatModel) -> None:
    """Refuse an attack whose library says that it attacks within other norms; nothing is known where it says none."""
    if norms and threat.norm not in norms:
        ours = [norm for norm in norms if norm in _NORMS.values()]
        way_out = f"use --norm {ours[0]}, or another attack" if ours else "use another attack"
        raise InputError(f"{name} attacks within {' and '.join(norms)}, not {threat.norm}; {way_out}.")


def _of_torchattacks(name: str, kind: str, options: dict[str, Any]) -> Attacker:
    def attack(model: nn.Module, x: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
        def make(cls: type) -> Any:
            # The library says it in words alone: "Distance Measure : Linf, L2".
            stated = re.search(r"Distance Measure\s*:(.*)", cls.__doc__ or "")
            norms = [str(options["norm"])] if "norm" in options else re.findall(r"L\w+", stated[1]) if stated else []
            _check_norm(name, [norm.lower() for norm in norms], threat)
            ours = {"eps": threat.eps, "norm": threat.norm.capitalize()}
            taken = inspect.signature(cls).parameters.keys() - options.keys()
            return cls(model, **options, **{key: value for key, value in ours.items() if key in taken})

        images: Tensor = _made(name, "torchattacks", kind, make)(x, labels)
        return images

    return attack


_LIBRARIES = {"foolbox": _of_foolbox, "torchattacks": _of_torchattacks}
