"""What zero-shot CLIP and a run's classifier say of one image, clean and under attack."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

import torch
from torch import Tensor

from apd.attacks import PGD, Objective, ThreatModel
from apd.attacks.objectives import margin
from apd.attacks.threat import Norm, format_eps, parse_eps
from apd.errors import InputError, nearest
from apd.models.calibration import Calibration, probabilities
from apd.models.classifier import FrozenClassifier, PromptedCLIP, check_distinct
from apd.runs.folder import Run
from apd.runs.load import load_run
from apd.util.files import AnyPath, user_path
from apd.util.threads import on_passing_thread

ZERO_SHOT, ROBUST = "zero-shot", "robust"
Gradients = Literal["each", "zero-shot", "robust"]
"""By whose gradients images are attacked: each model's own, or one model's for both."""
MOST_STEPS = 50
LARGEST_SEED = 2**31 - 1
_POINTS, _FEW_POINTS, _LARGE = 17, 9, 100
"""Budgets of a curve, and of one for encoders of at least so many pixels, where each costs seconds on a CPU."""
_KEPT = 8
"""Lists of classes whose features are kept."""
_PEAK = 10.0
"""How far above its mean a pixel's L2 perturbation is drawn at full contrast."""


@dataclass(frozen=True)
class Budgets:
    """The budgets a slider offers, in the unit people write: n/255 for Linf, [0,1] pixel units for L2.

    Args:
        norm: ``linf`` or ``l2``.
        trained: the run's own budget, in the slider's unit.
        most: the slider's end.
        step: the slider's step.
    """

    norm: Norm
    trained: float
    most: float
    step: float

    @classmethod
    def around(cls, eps: float, norm: Norm) -> Budgets:
        """Return budgets up to twice the run's ``eps`` ([0,1] pixel units), and to 8/255 at least."""
        if norm == "linf":
            levels = round(eps * 255, 4)
            most = min(255.0, max(8.0, float(math.ceil(2 * levels))))
            return cls(norm, levels, most, 0.25 if most <= 8 else 0.5)
        return cls(norm, eps, max(2 * eps, 0.1), max(2 * eps, 0.1) / 40)

    @property
    def unit(self) -> float:
        """[0,1] pixel units per unit of the slider."""
        return 1 / 255 if self.norm == "linf" else 1.0

    def text(self, value: float) -> str:
        """A slider's value as a budget is written: ``4/255``, or ``0.5`` for L2."""
        return format_eps(value * self.unit, self.norm)

    def gain(self, size: int) -> float:
        """How much perturbations of images (3, size, size) are amplified: the same at every budget, so that they grow."""
        peak = self.most * self.unit
        if self.norm == "l2":
            peak = min(1.0, _PEAK * peak / math.sqrt(3 * size * size))
        return max(1.0, math.floor(0.5 / peak))


@dataclass(frozen=True, eq=False)
class View:
    """What one model says of an image.

    Args:
        name: the model, ``zero-shot`` or ``robust``.
        clean: probabilities (C,) of the clean image.
        attacked: probabilities (C,) of the adversarial image.
        x_adv: the adversarial image (3,S,S) in [0,1].
        by: the model whose gradients made it.
    """

    name: str
    clean: Tensor
    attacked: Tensor
    x_adv: Tensor
    by: str

    @property
    def fooled(self) -> bool:
        """Whether the attack changes the answer."""
        return bool(self.clean.argmax() != self.attacked.argmax())


@dataclass(frozen=True, eq=False)
class Curve:
    """How one model's answer holds as the budget grows.

    Args:
        name: the model, ``zero-shot`` or ``robust``.
        eps: budgets in the slider's unit, from 0.
        kept: at each budget, the probability that is left of the model's clean answer.
        holds: at each budget, whether the clean answer is still the answer.
    """

    name: str
    eps: tuple[float, ...]
    kept: tuple[float, ...]
    holds: tuple[bool, ...]

    @property
    def first_fooled(self) -> float | None:
        """The smallest of these budgets that fools the model; None if none does."""
        return next((eps for eps, holds in zip(self.eps, self.holds, strict=True) if not holds), None)


class Explorer:
    """Answers for any image, class names and budget, with zero-shot CLIP beside a trained classifier.

    Args:
        robust: the run's classifier.
        budgets: which budgets are offered.
        title: the run's name, method and data, for people.
        calibration: what the robust classifier's probabilities for its own classes follow; None: none.
    """

    def __init__(
        self, robust: PromptedCLIP, budgets: Budgets, title: str = "", calibration: Calibration | None = None
    ) -> None:
        self.robust, self.budgets, self.title, self.calibration = robust, budgets, title, calibration
        self._models: OrderedDict[tuple[str, ...], dict[str, FrozenClassifier]] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: AnyPath, *, model: str | None = None, device: str = "cpu") -> Explorer:
        """Open a finished run.

        Args:
            path: the run folder.
            model: where the CLIP model is now, if it has moved.
            device: where to compute.

        Raises:
            InputError: not a finished run, or another CLIP model than the run's.
        """
        run = Run.open(path)
        train = run.config.train
        budgets = Budgets.around(parse_eps(train.eps, train.norm), train.norm)
        title = f"{user_path(path).resolve().name}: {run.config.method.name} on {run.manifest['data']['name']}"
        robust = on_passing_thread(lambda: load_run(path, device=device, model=model))
        return cls(robust, budgets, title, run.calibration)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes the run was trained for."""
        return self.robust.class_names

    def look(
        self,
        x: Tensor,
        class_names: Sequence[str],
        *,
        eps: float,
        steps: int,
        gradients: Gradients = "each",
        seed: int = 0,
    ) -> dict[str, View]:
        """Classify an image by both models, clean and attacked by PGD away from the attacked model's clean answer.

        PGD maximises the margin (`apd.attacks.objectives.margin`) from a random start drawn by ``seed``, in steps of eps/4
        (of eps/steps if there are fewer than four); the last image counts. The same arguments give the same answer.

        Args:
            x: the image (3,S,S) in [0,1].
            class_names: at least two.
            eps: budget in the slider's unit, see `Budgets`.
            steps: how many steps PGD takes.
            gradients: ``each``: each model is attacked by its own gradients (white-box); a model's name: by that model's,
                and both models see the same image.
            seed: draws the random start.

        Returns:
            ``{"zero-shot": View, "robust": View}``.

        Raises:
            InputError: class names that the models cannot tell apart or were not made for, numbers out of range.
        """
        _check(x, steps, gradients, seed)
        class_names = names_of_classes(class_names)
        models = self._bound(class_names)
        x = x[None].to(self.robust.encoder.device)
        with torch.no_grad():
            clean = {name: self._probabilities(name, model(x), class_names) for name, model in models.items()}
        found: dict[str, Tensor] = {}
        views = {}
        for name, model in models.items():
            by = name if gradients == "each" else gradients
            if by not in found:
                threat = ThreatModel(eps * self.budgets.unit, self.budgets.norm)
                found[by] = x if eps == 0 else _pgd(models[by], x, threat, steps, seed)
            with torch.no_grad():
                attacked = self._probabilities(name, model(found[by]), class_names)
            views[name] = View(name, clean[name][0].cpu(), attacked[0].cpu(), found[by][0].cpu(), by)
        return views

    def sweep(
        self, x: Tensor, class_names: Sequence[str], *, steps: int, gradients: Gradients = "each", seed: int = 0
    ) -> dict[str, Curve]:
        """Attack an image as `look` does at budgets from 0 to the slider's end, all in one batch.

        Args:
            x: the image (3,S,S) in [0,1].
            class_names: at least two.
            steps: how many steps PGD takes.
            gradients: see `look`.
            seed: draws the random start.

        Returns:
            ``{"zero-shot": Curve, "robust": Curve}``.

        Raises:
            InputError: see `look`.
        """
        _check(x, steps, gradients, seed)
        points = _POINTS if x.shape[-1] < _LARGE else _FEW_POINTS
        shares = torch.linspace(0, 1, points)
        budgets = tuple(round(float(share) * self.budgets.most, 6) for share in shares)
        class_names = names_of_classes(class_names)
        models = self._bound(class_names)
        batch = x[None].to(self.robust.encoder.device).expand(points, -1, -1, -1)
        threat = ThreatModel(self.budgets.most * self.budgets.unit, self.budgets.norm, shares.to(batch.device))
        found: dict[str, Tensor] = {}
        curves = {}
        for name, model in models.items():
            by = name if gradients == "each" else gradients
            if by not in found:
                found[by] = _pgd(models[by], batch, threat, steps, seed)
            with torch.no_grad():
                answer = model(batch[:1]).argmax(dim=-1)
                attacked = self._probabilities(name, model(found[by]), class_names)
            kept, holds = attacked[:, int(answer)], attacked.argmax(dim=-1) == answer
            curves[name] = Curve(name, budgets, tuple(kept.tolist()), tuple(holds.tolist()))
        return curves

    def _probabilities(self, name: str, logits: Tensor, class_names: Sequence[str]) -> Tensor:
        """As `apd predict` gives them: calibrated, where the run is and for its own classes."""
        own = name == ROBUST and tuple(class_names) == self.class_names
        return probabilities(logits, self.calibration if own else None)

    def _bound(self, class_names: tuple[str, ...]) -> dict[str, FrozenClassifier]:
        """Both classifiers for some classes; class features are computed once as long as few lists are in use."""
        with self._lock:
            if class_names in self._models:
                self._models.move_to_end(class_names)
                return self._models[class_names]
            robust = self.robust.with_classes(class_names)
            pair = {ZERO_SHOT: robust.zero_shot(), ROBUST: robust}
            for classifier in pair.values():
                check_distinct(classifier)
            self._models[class_names] = {name: classifier.frozen() for name, classifier in pair.items()}
            while len(self._models) > _KEPT:
                self._models.popitem(last=False)
            return self._models[class_names]


def names_of_classes(given: Sequence[str]) -> tuple[str, ...]:
    """Return class names as a tuple.

    Raises:
        InputError: a single text, whose letters are not classes.
    """
    if isinstance(given, str):
        raise InputError(f"class_names must be a list of names, got {given!r}.")
    return tuple(given)


def _check(x: Tensor, steps: int, gradients: str, seed: int) -> None:
    """Refuse what no attack of the explorer can do.

    Raises:
        InputError: unknown gradients, no step, a seed that torch does not take, pixels outside of [0,1].
    """
    if gradients not in get_args(Gradients):
        raise InputError(f"unknown gradients {gradients!r}. {nearest(str(gradients), get_args(Gradients))}")
    if not isinstance(steps, Integral) or steps < 1:
        raise InputError(f"steps must be a whole number from 1, got {steps!r}.")
    if not isinstance(seed, Integral) or not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"seed must be a whole number from 0 to {LARGEST_SEED}, got {seed!r}.")
    if not 0 <= float(x.min()) <= float(x.max()) <= 1:
        raise InputError(f"the image must be in [0,1], got {float(x.min()):.3g} to {float(x.max()):.3g}.")


def _pgd(model: FrozenClassifier, x: Tensor, threat: ThreatModel, steps: int, seed: int) -> Tensor:
    """Adversarial images (B,3,S,S), away from what ``model`` says of the clean ones, all from the same random draw."""
    with torch.no_grad():
        answer = model(x).argmax(dim=-1)
    attack = PGD(steps, step_size=max(0.25, 1 / steps))
    return attack(Objective(model, margin, answer), x, threat, torch.full((len(x),), seed))
