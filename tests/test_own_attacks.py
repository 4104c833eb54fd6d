"""Attacks of one's own that do what they must not: images that nobody could send are not counted as fooled ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import apd
from apd.attacks import (
    NFGSM,
    PGD,
    AttackBatch,
    Cascade,
    ClimbingAttack,
    EvaluationAttack,
    Found,
    Objective,
    ThreatModel,
    TrainingAttack,
    beyond_margin,
    misclassified,
    name_of,
)
from apd.attacks.evaluation import UNWATCHED
from apd.data.batch import Batch
from apd.methods import Method, MethodSettings, Preparation, Step
from apd.methods.adversarial import AdvVLP, AdvVLPSettings
from apd.models import DualEncoder
from apd.models.classifier import PromptedCLIP
from apd.training.step import TrainStep

from .refusals import refused
from .test_foreign_code import Means, halves

EPS = ThreatModel(8 / 255)


class Returns(EvaluationAttack):
    """Returns what a function makes of the images."""

    name = "own"

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        self.make = make

    def __call__(self, model: Any, batch: AttackBatch, threat: ThreatModel, watch: Any = UNWATCHED) -> Found:
        made = self.make(batch.x)
        return made if isinstance(made, Found) else Found(made, [self.name] * len(batch))


class Climbs(TrainingAttack):
    """The same in training."""

    def __init__(self, make: Callable[[Tensor], Any] = torch.clone) -> None:
        self.make = make

    def __call__(self, objective: Any, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        made: Tensor = self.make(x)
        return made


def attacked(attack: EvaluationAttack, batch: AttackBatch) -> Found:
    return attack.checked(attack(Means(), batch.copy(), EPS), batch, EPS)


def batch() -> AttackBatch:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return AttackBatch(x, torch.tensor([0, 1, 0, 1]), list("abcd"))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda x: x.roll(1, 0), "own leaves its limits with 4 of 4"),
        (lambda x: x.zero_(), "own leaves its limits with 4 of 4"),
        (lambda x: x + torch.tensor([0.0, 0.0, 0.04, 0.0]).view(4, 1, 1, 1), "1 of 4"),
        (lambda x: x * torch.nan, "4 of 4"),
        (lambda x: torch.where(x == x.max(), 1.02, x), "1 of 4"),
        (lambda x: x[:, :1], "(4, 1, 8, 8)"),
        (lambda x: (x * 255).byte(), "torch.uint8"),
        (lambda x: Found(x, ["own"]), "each"),
    ],
    ids=["other images", "in place", "one too far", "not numbers", "not pixels", "shape", "type", "names"],
)
def test_images_outside_of_the_limits_are_refused(make: Callable[[Tensor], Any], named: str) -> None:
    for attack in (Returns(make), Cascade("all", (Returns(lambda x: x), Returns(make), Returns(lambda x: x)))):
        with refused(named):
            attacked(attack, batch())


def test_what_rounding_does_is_inside() -> None:
    for norm, eps in (("linf", 1 / 255), ("l2", 0.5), ("l1", 12.0)):
        threat = ThreatModel(eps, norm)  # type: ignore[arg-type]
        images = batch()
        far = threat.project(images.x + 1e4 * torch.randn(images.x.shape), images.x)
        assert Returns(torch.clone).checked(Found(far, ["own"] * 4), images, threat).images is far


def test_an_attack_with_limits_of_its_own_is_held_to_these() -> None:
    class Wide(Returns):
        def limits(self, threat: ThreatModel) -> ThreatModel:
            return ThreatModel(1.0)

    assert bool((attacked(Wide(torch.ones_like), batch()).images == 1).all())


def test_an_evaluation_refuses_them_and_keeps_nothing_of_them(tmp_path: Path) -> None:
    class Elsewhere(Returns):
        def __init__(self) -> None:
            super().__init__(lambda x: x.roll(1, 0))

    settings: dict[str, Any] = {"limit": 4, "eps": "8/255", "checks": False, "quiet": True, "store": tmp_path}
    for _ in range(2):
        with refused("limits"):
            apd.evaluate(Means(), halves(), attacks=[Elsewhere], **settings)
    assert [file.name[:6] for file in tmp_path.glob("*.jsonl")] == ["clean-"]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda x: None, "NoneType"),
        (lambda x: x[:1], "(1, 3, 8, 8)"),
        (lambda x: x[:, :1], "(4, 1, 8, 8)"),
        (lambda x: (x * 255).byte(), "torch.uint8"),
    ],
)
def test_a_training_attack_s_images_must_look_like_images(make: Callable[[Tensor], Any], named: str) -> None:
    with refused("mine", named):
        ClimbingAttack("mine", Climbs(make))(Means(), batch(), EPS)


def test_a_training_attack_that_works_in_place_leaves_the_clean_images_as_they_are(clip: DualEncoder) -> None:
    bare = PromptedCLIP(clip, None, ["cat", "dog"])
    found = []
    for make in (lambda x: (x + 0.03).clamp(0, 1), lambda x: x.add_(0.03).clamp_(0, 1)):
        x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        step = TrainStep(AdvVLP(AdvVLPSettings(clean=0.5), bare), attack=Climbs(make))
        terms, _ = step(Batch.of(x, torch.tensor([0, 1])), EPS)
        found.append({name: term.item() for name, term in terms.items()})
    assert found[0] == found[1]
    with refused("(2, 1, 16, 16)"):
        TrainStep(step.method, attack=Climbs(lambda x: x[:, :1]))(Batch.of(x, torch.tensor([0, 1])), EPS)


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        (lambda z, labels: z.mean(), "shape ()"),
        (lambda z, labels: z, "shape (2, 3)"),
        (lambda z, labels: z.sum(dim=1, keepdim=True), "shape (2, 1)"),
        (lambda z, labels: 0.5, "float"),
        (lambda z, labels: z.argmax(dim=1).float(), "no gradient"),
    ],
)
def test_an_attack_loss_is_one_value_per_sample_with_a_gradient(loss: Callable[..., Any], named: str) -> None:
    objective = Objective(lambda x: x.flatten(1)[:, :3], loss, torch.tensor([0, 1]))
    x = torch.rand(2, 3, 4, 4)
    for attack in (PGD(2), NFGSM()):
        with refused("<lambda>", named):
            attack(objective, x, EPS, torch.arange(2))


def test_classes_that_lack_what_they_need_are_refused_by_name(clip: DualEncoder) -> None:
    still = type("Still", (TrainingAttack,), {})
    nameless = type("Nameless", (EvaluationAttack,), {"__call__": Returns.__call__})
    empty = type("Empty", (EvaluationAttack,), {"name": "empty"})
    for attack, named in ((still, "objective, x"), (nameless, "no name"), (empty, "model, batch"), (PGD, None)):
        if named is not None:
            with refused(attack.__name__, named):
                apd.evaluate(Means(), halves(), attacks=[attack], quiet=True)
    with refused("Still", "__call__"):
        apd.train(clip, halves(), attack=still, quiet=True)
    with refused("Loose", "MethodSettings"):
        apd.train(clip, halves(), method=type("Loose", (Method,), {"Settings": dict, "loss": AdvVLP.loss}), quiet=True)


def test_what_a_method_s_other_parts_return_is_checked(clip: DualEncoder, tmp_path: Path, colours: Path) -> None:
    class Wrong(Method):
        Settings = MethodSettings

        def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
            return {"adv_ce": step.cross_entropy(step.student.logits(x_adv))}

    class WrongInner(Wrong):
        def inner(self, step: Step, attacked: Any) -> Any:
            return attacked.logits

    class WrongFacts(Wrong):
        def facts(self) -> dict[str, Any]:
            return {"share": torch.tensor(0.5)}

    class NoNumber(Wrong):
        def facts(self) -> dict[str, Any]:
            return {"share": math.nan}

    class LateBuffer(Wrong):
        def prepare(self, before: Preparation) -> None:
            self.register_buffer("target", torch.zeros(2))

    class Resized(Wrong):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.register_buffer("target", torch.zeros(0))

        def prepare(self, before: Preparation) -> None:
            self.target = torch.zeros(2)

    class LateParameter(Wrong):
        def prepare(self, before: Preparation) -> None:
            self.scale = torch.nn.Parameter(torch.ones(()))

    class LateFreeze(Wrong):
        def prepare(self, before: Preparation) -> None:
            self.student.prompts.requires_grad_(False)

    data = apd.load_data(colours, shots=1)
    for method, named in (
        (WrongInner, "inner() of WrongInner"),
        (WrongFacts, "facts() of WrongFacts"),
        (NoNumber, "facts() of NoNumber"),
        (LateBuffer, "'target' of LateBuffer: prepare() makes"),
        (Resized, "'target' of Resized: prepare() changes its form"),
        (LateParameter, "'scale' of LateParameter: prepare() makes"),
        (LateFreeze, "of LateFreeze: prepare() changes its form, or whether it is trained"),
    ):
        with refused(named, by=apd.errors.ApdError):
            apd.train(clip, data, method=method, epochs=5, output=tmp_path / "run", quiet=True)
        steps = (tmp_path / "run" / "metrics.jsonl").read_text() if (tmp_path / "run").exists() else ""
        assert steps.count('"loss"') <= 1, "told before the work is done"


@dataclass(frozen=True)
class Fixed(TrainingAttack):
    """Adds what it holds."""

    delta: Any
    leave: Any = None

    def __call__(self, objective: Any, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        return threat.project(x + self.delta, x)


def _linear(seed: int) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(3, 40, 40), torch.zeros(3, 40, 40).index_fill(2, torch.tensor([20]), 0.1)),
        (torch.tensor(0.12345), torch.tensor(0.123451)),
        (np.zeros(2000), np.eye(1, 2000, 1000)[0]),
        (_linear(0), _linear(1)),
        ([torch.zeros(2000)], [torch.eye(1, 2000)[0].roll(1000)]),
        (PGD(2, leave=misclassified), PGD(2, leave=beyond_margin(1.0))),
    ],
    ids=["large tensors", "close numbers", "arrays", "weights", "lists", "functions"],
)
def test_attacks_that_hold_something_else_have_another_name(one: Any, other: Any) -> None:
    names = [name_of(Fixed(held)) for held in (one, copy.deepcopy(one), other)]
    assert names[0] == names[1] != names[2] and " at 0x" not in names[0]


def test_outcomes_of_another_perturbation_are_not_returned(tmp_path: Path) -> None:
    held = [torch.full((3, 8, 8), 0.49999), torch.full((3, 8, 8), 0.50001)]  # printed alike
    settings: dict[str, Any] = {"limit": 4, "eps": "220/255", "checks": False, "quiet": True, "store": tmp_path}
    found = [apd.evaluate(Means(), halves(), attacks=[Fixed(delta)], **settings).worst.accuracy for delta in held]
    both = apd.evaluate(Means(), halves(), attacks=[Fixed(held[0]), Fixed(held[1])], **settings)
    assert [score.accuracy for score in both.attacks.values()] == found and found[0] > found[1]
    assert len(apd.evaluate(Means(), halves(), attacks=[Fixed(held[0])] * 2, **settings).attacks) == 1
