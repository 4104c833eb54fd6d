"""Attacks of other libraries by name, as objects and as functions of a model."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from apd import attacks
from apd.attacks import AttackBatch, misclassified
from apd.attacks.threat import ThreatModel
from apd.evaluation import EvaluationSettings

from .refusals import meant, refused
from .test_attacks import standing_pictures
from .toys import trained


def batch_of(model: nn.Module) -> AttackBatch:
    x, labels = standing_pictures(model, 20, 5)
    return AttackBatch(x, labels, [str(i) for i in range(len(x))])


@pytest.mark.parametrize(
    ("name", "threat"),
    [
        ("foolbox:LinfPGD(steps=10, rel_stepsize=0.25)", ThreatModel(0.06)),
        ("foolbox:L2FMNAttack(steps=20)", ThreatModel(0.8, "l2")),
    ],
)
def test_foolbox_by_name(name: str, threat: ThreatModel) -> None:
    model = trained(5)
    batch = batch_of(model)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = attacks.find(name)(model, batch, threat)
    assert torch.equal(torch.rand(3), expected)
    assert set(found.by) == {name}
    assert (threat.distance(found.images, batch.x) <= threat.eps + 1e-5).all()
    assert misclassified(model(found.images), batch.labels).float().mean() > 0.3
    assert torch.equal(attacks.find(name)(model, batch, threat).images, found.images)


def test_foolbox_as_an_object() -> None:
    import foolbox

    attack = foolbox.attacks.LinfPGD(steps=10, rel_stepsize=0.25)
    settings = EvaluationSettings(attacks=(attack,))  # type: ignore[arg-type]
    assert "steps=10" in settings.attacks[0]
    model = trained(5)
    batch = batch_of(model)
    found = attacks.find(settings.attacks[0])(model, batch, ThreatModel(0.06))
    assert misclassified(model(found.images), batch.labels).float().mean() > 0.3


def test_settings_of_another_library_are_values_only() -> None:
    with refused("foolbox:LinfPGD", "steps=20"):
        attacks.find("foolbox:LinfPGD(steps=open('x'))")
    with refused("foolbox:LinfPGD"):
        attacks.find("foolbox:LinfPGD(20)")
    model = trained(5)
    for name, way_out in [
        ("foolbox:LinfPDG", "LinfPDG"),
        ("foolbox:LinfPGD(stepz=3)", "stepz"),
        ("foolbox:L2PGD", "--norm l2"),
    ]:
        with refused(name, way_out):
            attacks.find(name)(model, batch_of(model), ThreatModel(0.06))
    with refused("folbox", meant("foolbox:LinfPGD")):
        attacks.find("folbox-LinfPGD")


class Torchattack:
    """Has the interface of torchattacks: the model at construction, images and labels at the call."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255, steps: int = 1) -> None:
        self.model, self.eps, self.steps = model, eps, steps

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        x = images.requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(self.model(x), labels), x)
        return (x + self.steps * self.eps * gradient.sign()).clamp(0, 1).detach()


def test_torchattacks_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("torchattacks")
    library.FGSM = Torchattack  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchattacks", library)
    model = trained(5)
    batch = batch_of(model)
    found = attacks.find("torchattacks:FGSM(steps=3)")(model, batch, ThreatModel(0.06))
    assert ((found.images - batch.x).abs() <= 0.06 + 1e-6).all(), "three times eps is projected"
    assert misclassified(model(found.images), batch.labels).float().mean() > 0.3
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with refused("torchattacks", "pip install torchattacks"):
        attacks.find("torchattacks:FGSM")(model, batch, ThreatModel(0.06))


class Anywhere(Torchattack):
    """One that is told its norm.

    Distance Measure : Linf, L2
    """

    def __init__(self, model: nn.Module, norm: str = "Linf", eps: float = 8 / 255) -> None:
        super().__init__(model, eps)
        NORMS.append(norm)


class Sparse(Torchattack):
    """Distance Measure : L0"""


NORMS: list[str] = []


def test_torchattacks_keep_to_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("torchattacks")
    library.Anywhere, library.Sparse = Anywhere, Sparse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchattacks", library)
    model = trained(5)

    def attack(name: str, threat: ThreatModel) -> None:
        attacks.find(f"torchattacks:{name}")(model, batch_of(model), threat)

    attack("Anywhere", ThreatModel(0.06))
    attack("Anywhere", ThreatModel(0.5, "l2"))
    assert NORMS == ["Linf", "L2"]
    with refused("Anywhere", "linf and l2", "not l1", "--norm linf"):
        attack("Anywhere", ThreatModel(5.0, "l1"))
    with refused("Anywhere", "within l2", "not linf", "--norm l2"):
        attack("Anywhere(norm='L2')", ThreatModel(0.06))
    with refused("Sparse", "l0", "use another attack"):
        attack("Sparse", ThreatModel(0.06))


def dims(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """A function of the usual form."""
    return images - 2 * eps


def wrong(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Returns something else than images."""
    return labels


def test_a_function_of_a_model_is_an_attack() -> None:
    model, threat = trained(5), ThreatModel(0.1)
    batch = batch_of(model)
    found = attacks.find(f"{__name__}:dims")(model, batch, threat)
    assert torch.equal(found.images, threat.project(batch.x - 0.2, batch.x))
    with refused(f"{__name__}:wrong"):
        attacks.find(f"{__name__}:wrong")(model, batch, threat)


def test_an_error_within_a_library_names_the_attack() -> None:
    model = trained(5)
    for name in ("foolbox:GenAttack(steps=2)", "foolbox:LinfPGD(steps='3')"):
        with refused(name, "settings"):
            attacks.find(name)(model, batch_of(model), ThreatModel(0.06))
