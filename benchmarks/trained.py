"""The few trainings that figures on certified accuracy and on class names are measured with, kept from call to call."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apd


@dataclass(frozen=True)
class Setting:
    """A data set, its CLIP model, and the budget that makes sense there.

    Args:
        name: in tables.
        model: what `apd.load_clip` takes.
        source: what `apd.load_data` takes.
        eps: Linf, for training and for attacks on images.
        sigma: noise, for training and for certification.
    """

    name: str
    model: str
    source: str
    eps: str
    sigma: float


@dataclass(frozen=True)
class Recipe:
    """How prompts are trained.

    Args:
        name: in tables.
        method: the method's name.
        settings: of ``train``, besides the budget.
        noise: train under Gaussian noise, not under attack.
    """

    name: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    noise: bool = False


APD = Recipe("APD", "apd", {"epochs": 10})
CONTROL = Recipe("control (advvlp)", "advvlp", {"epochs": 10})
NOISE = Recipe("APD under noise", "apd", {"epochs": 20}, noise=True)
SHOTS = 16


def settings(testbed: Path | None) -> list[Setting]:
    """The built-in digits, and CIFAR-10 of the testbed if there is one."""
    found = [Setting("digits", "glyphs", "digits", "14/255", 0.5)]
    if testbed is not None:
        testbed = testbed.resolve()
        found.append(Setting("cifar10", str(testbed / "clip"), str(testbed / "data" / "cifar10"), "1.75/255", 0.12))
    return found


def trained(where: Setting, recipe: Recipe, runs: Path, seed: int = 0) -> Path:
    """Train, or take the run that an earlier call has left; an interrupted training is resumed."""
    given: dict[str, Any] = {"eps": where.eps, "seed": seed, **recipe.settings}
    if recipe.noise:
        given["attack"] = {"kind": "noise", "options": {"sigma": where.sigma}}
    data = apd.load_data(where.source, shots=SHOTS, seed=seed)
    noise = f"-noise{where.sigma:g}" if recipe.noise else ""
    folder = runs / f"{where.name}-{recipe.method}{noise}-seed{seed}"
    return apd.train(where.model, data, method=recipe.method, output=folder, resume=True, **given).path
