"""Minimum-norm, targeted and restarted attacks against exact answers of linear models, and the ensemble ``strong``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apd import attacks
from apd.attacks import AttackBatch, MinimalNorm, Surroundings, autoattack, misclassified
from apd.attacks.strong import Strong
from apd.attacks.threat import Norm, ThreatModel
from apd.evaluation import EvaluationSettings
from benchmarks.planted import rare_class

from .refusals import meant, refused
from .test_attacks import standing_pictures
from .test_l1 import linear_binary
from .toys import trained

DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}


def near_the_border(n: int = 12) -> tuple[nn.Module, Tensor, AttackBatch]:
    """A linear model and images of class 0 from whose nearest wrong image no pixel leaves [0,1]."""
    model, w = linear_binary()
    x = 0.5 + 0.1 * torch.rand(8 * n, 3, 4, 4, generator=torch.Generator().manual_seed(1)) - 0.05
    gap = x.flatten(1) @ w - w.sum() / 2
    index = ((gap > 0.02) & (gap < 0.4)).nonzero().flatten()[:n]
    assert len(index) == n
    labels = torch.zeros(n, dtype=torch.long)
    return model, w, AttackBatch(x[index], labels, [str(i) for i in range(n)])


@pytest.mark.parametrize(
    ("name", "norm", "tolerance"),
    [("fmn", "linf", 0.02), ("fmn", "l2", 0.01), ("fmn", "l1", 0.03), ("cw", "l2", 0.05)],
)
def test_minimal_distances_are_those_of_a_linear_model(name: str, norm: Norm, tolerance: float) -> None:
    model, w, batch = near_the_border()
    attack = attacks.find(name)
    assert isinstance(attack, MinimalNorm)
    images, distances = attack.minimal(model, batch, norm)
    exact = (batch.x.flatten(1) @ w - w.sum() / 2) / w.norm(p=DUAL[norm])
    assert misclassified(model(images), batch.labels).all()
    torch.testing.assert_close(distances, ThreatModel(1.0, norm).distance(images, batch.x))
    assert (distances >= exact * (1 - 1e-3)).all()
    assert (distances <= exact * (1 + tolerance)).all(), (distances / exact).max()
    # Within a budget: exactly those that are near enough, and the others are left clean.
    eps = float(distances.median())
    found = attack(model, batch, ThreatModel(eps, norm))
    assert torch.equal(misclassified(model(found.images), batch.labels), distances <= eps)
    assert torch.equal(found.images[distances > eps * 1.01], batch.x[distances > eps * 1.01])


@pytest.mark.parametrize("name", ["fmn", "cw"])
def test_black_and_white_pixels_can_be_moved(name: str) -> None:
    """As in drawings: the nearest wrong images that the two attacks find are about equally far."""
    model = trained(5)
    x = (standing_pictures(model, 12, 5)[0] > 0.5).float()
    batch = AttackBatch(x, model(x).argmax(dim=1), [str(i) for i in range(len(x))])
    found = {name: attacks.find(name).minimal(model, batch, "l2")[1] for name in ("fmn", "cw")}  # type: ignore[attr-defined]
    assert (found[name] <= 1.5 * min(found.values(), key=lambda distances: distances.sum())).all()


@pytest.mark.parametrize("name", ["cw", "targeted:1"])
def test_outcomes_that_the_weaker_form_has_left_are_not_taken(name: str) -> None:
    """Their record names neither the attack's settings nor its code: what it depends on tells them apart."""
    assert attacks.find(name).depends_on()


def test_a_third_class_does_not_stand_between_an_image_and_its_target() -> None:
    """One pixel raises the target's logit, but another one's more; one alone is enough."""

    class Three(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = (x[:, 0, 0, :2] - 0.5).unbind(dim=1)
            return torch.stack([0 * a + 0.05, a + 0.6 * b, 2 * a], dim=1)

    n = 60
    batch = AttackBatch(torch.full((n, 3, 1, 2), 0.5), torch.zeros(n, dtype=torch.long), [str(i) for i in range(n)])
    found = attacks.find("targeted:1")(Three(), batch, ThreatModel(0.2))
    assert (Three()(found.images).argmax(dim=1) == 1).all()


def test_a_model_that_cannot_be_fooled_has_no_distance() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0]) + 0 * x.flatten(1)[:, :2]

    batch = AttackBatch(torch.rand(3, 3, 4, 4), torch.zeros(3, dtype=torch.long), ["a", "b", "c"])
    for name in ("fmn", "cw"):
        images, distances = attacks.find(name).minimal(Constant(), batch, "l2")  # type: ignore[attr-defined]
        assert distances.isinf().all() and torch.equal(images, batch.x)


@pytest.mark.parametrize("name", ["margin-pgd", "targeted", "targeted:1"])
def test_what_falls_is_what_can_fall(name: str) -> None:
    model, w, batch = near_the_border()
    exact = (batch.x.flatten(1) @ w - w.sum() / 2) / w.norm(p=1)
    eps = float(exact.median()) * 1.0001
    found = attacks.find(name)(model, batch, ThreatModel(eps))
    assert torch.equal(misclassified(model(found.images), batch.labels), exact <= eps)
    assert ((found.images - batch.x).abs() <= eps + 1e-6).all()


def test_a_target_is_reached_or_the_image_stays() -> None:
    model = trained(5)
    x, labels = standing_pictures(model, 12, 5)
    batch = AttackBatch(x, labels, [str(i) for i in range(len(x))])
    around = Surroundings(("a", "b", "c", "d", "e"), lambda _: pytest.fail(), lambda: batch)
    found = attacks.find("targeted:c").prepared(around)(model, batch, ThreatModel(0.06))
    moved = (found.images != x).flatten(1).any(dim=1)
    assert 0 < int(moved.sum()) < len(x) and not moved[labels == 2].any()
    assert (model(found.images).argmax(dim=1)[moved] == 2).all()
    by_number = attacks.find("targeted:2")(model, batch, ThreatModel(0.06))
    assert torch.equal(
        by_number.images, attacks.find("targeted:2").prepared(around)(model, batch, ThreatModel(0.06)).images
    )
    with refused("targeted:f"):
        attacks.find("targeted:f").prepared(around)
    with refused("targeted:c"):
        attacks.find("targeted:c")(model, batch, ThreatModel(0.06))


@pytest.mark.parametrize("name", ["margin-pgd", "targeted", "fmn"])
def test_results_do_not_depend_on_the_batch(name: str) -> None:
    model = trained(5)
    x, labels = standing_pictures(model, 10, 5)
    whole = attacks.find(name)(model, AttackBatch(x, labels, [str(i) for i in range(len(x))]), ThreatModel(0.03))
    part = attacks.find(name)(model, AttackBatch(x[3:5], labels[3:5], ["3", "4"]), ThreatModel(0.03))
    torch.testing.assert_close(part.images, whole.images[3:5], rtol=0, atol=1e-5)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoAttack with a tenth of its iterations, and a hundredth of Square's queries."""

    standard = autoattack._standard

    def shortened(*args: Any) -> Any:
        library = standard(*args)
        for part in (library.apgd, library.apgd_targeted, library.fab):
            part.n_iter = part.n_iter_orig = 10
        library.square.n_queries = 50
        return library

    monkeypatch.setattr(autoattack, "_standard", shortened)


class Remembering(attacks.Watch):
    """Remembers which parts ended, and who withstood them."""

    def __init__(self, done: Sequence[str] = ()) -> None:
        super().__init__(done)
        self.ended: dict[str, int] = {}
        self.begun: list[str] = []

    def begin(self, part: str) -> None:
        self.begun.append(part)

    def end(self, part: str, ids: Sequence[str], predicted: Tensor, flags: Counter[str]) -> None:
        self.ended[part] = len(ids)


@pytest.mark.usefixtures("short")
def test_strong_finds_a_weakness_that_autoattack_misses() -> None:
    """A class that is far from likely, but whose logit is steep: not among AutoAttack's nine targets."""
    model, x, labels, eps = rare_class(3)
    batch = AttackBatch(x, labels, [str(i) for i in range(len(x))])
    standard = attacks.find("autoattack")(model, batch, ThreatModel(eps))
    assert not misclassified(model(standard.images), labels).any()
    watch = Remembering()
    found = attacks.find("strong")(model, batch, ThreatModel(eps), watch)
    assert misclassified(model(found.images), labels).all()
    assert set(found.by) == {"targeted"}
    assert ((found.images - x).abs() <= eps + 1e-6).all()
    assert list(watch.ended) == ["apgd-ce", "apgd-t", "fab-t", "square", "margin-pgd", "targeted"]
    again = Remembering(["apgd-ce", "apgd-t", "fab-t", "square", "margin-pgd"])
    resumed = attacks.find("strong")(model, batch, ThreatModel(eps), again)
    assert torch.equal(resumed.images, found.images) and again.begun == ["targeted"]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_strong_fools_whom_autoattack_fools(norm: Norm) -> None:
    model, threat = trained(2, "linear"), ThreatModel({"linf": 0.05, "l2": 0.6, "l1": 6.0}[norm], norm)
    x, labels = standing_pictures(model, 8, 2)
    batch = AttackBatch(x, labels, [str(i) for i in range(len(x))])
    standard = misclassified(model(attacks.find("autoattack")(model, batch, threat).images), labels)
    found = attacks.find("strong")(model, batch, threat)
    fooled = misclassified(model(found.images), labels)
    assert not (standard & ~fooled).any() and fooled.any()
    assert (threat.distance(found.images, x) <= threat.eps + 1e-4).all()


def test_passes_of_strong_are_those_of_its_parts() -> None:
    attack = attacks.find("strong")
    assert attack.runs(12)[:4] == attacks.find("autoattack").runs(12)
    assert attack.part_passes(12)[:4] == attacks.find("autoattack").part_passes(12)
    # The dearest part decides how many images are taken at a time, on which AutoAttack's random numbers depend.
    assert max(attack.part_passes(1000)) == max(attacks.find("autoattack").part_passes(1000))
    assert len(attack.part_passes(12)) == len(attack.runs(12)) == 4 + len(Strong().parts)


def test_an_attack_of_another_norm_is_refused() -> None:
    assert EvaluationSettings(attacks=("cw",), eps="0.5", norm="l2").attacks == ("cw",)
    with pytest.raises(ValueError, match="cw"):
        EvaluationSettings(attacks=("cw",))
    with refused("fmm", meant("fmn")):
        attacks.find("fmm")
