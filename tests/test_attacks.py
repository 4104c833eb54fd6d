"""Attacks: against an independent library, slow references, and small trained models."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apd import attacks
from apd.attacks import (
    FGSMRS,
    NFGSM,
    PGD,
    Attack,
    Cascade,
    FriendlyPGD,
    Objective,
    cross_entropy,
    dlr,
    kl,
    kl_from_logits,
    kl_of_pair,
    margin,
    misclassified,
)
from apd.attacks.base import sample_seeds
from apd.errors import InputError
from apd.threat import ThreatModel

from .toys import Counting, pictures, trained

BALLS = [ThreatModel(0.06, "linf"), ThreatModel(0.8, "l2")]


def standing_pictures(model: nn.Module, n: int, n_classes: int) -> tuple[Tensor, Tensor]:
    x, labels = pictures(n, n_classes)
    right = ~misclassified(model(x), labels)
    return x[right], labels[right]


# Objectives


def slow_softmax(z: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in z)
    return [math.exp(v) / total for v in z]


def slow_kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def test_objectives_agree_with_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    z, other = torch.randn(6, 5, generator=generator) * 3, torch.randn(6, 5, generator=generator)
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    p = [slow_softmax(row) for row in z.tolist()]
    q = [slow_softmax(row) for row in other.tolist()]
    rows = list(zip(z.tolist(), labels.tolist(), strict=True))
    expected = {
        "ce": [-math.log(probabilities[y]) for probabilities, y in zip(p, labels.tolist(), strict=True)],
        "kl": [slow_kl(b, a) for a, b in zip(p, q, strict=True)],
        "margin": [max(v for i, v in enumerate(row) if i != y) - row[y] for row, y in rows],
        "dlr": [
            (max(v for i, v in enumerate(row) if i != y) - row[y]) / (sorted(row)[-1] - sorted(row)[-3])
            for row, y in rows
        ],
    }
    found = {
        "ce": cross_entropy(z, labels),
        "kl": kl(z, other.softmax(dim=-1)),
        "margin": margin(z, labels),
        "dlr": dlr(z, labels),
    }
    for name, values in expected.items():
        torch.testing.assert_close(found[name], torch.tensor(values), msg=name)
    torch.testing.assert_close(kl_from_logits(z, other), found["kl"])
    torch.testing.assert_close(kl_of_pair(torch.cat([other, z], dim=1), labels), found["kl"])
    assert torch.equal(margin(z, labels) > 0, misclassified(z, labels))


def test_kl_takes_hard_targets() -> None:
    z, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(kl(z, F.one_hot(labels, 3).float()), cross_entropy(z, labels))


# PGD


@pytest.mark.parametrize("threat", BALLS, ids=lambda ball: ball.norm)
@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_agrees_with_foolbox(threat: ThreatModel, random_start: bool) -> None:
    import eagerpy
    import foolbox

    model, (x, labels) = trained(5), pictures(20, 5)
    seeds = torch.arange(20)
    ours = PGD(steps=7, step_size=0.3, random_start=random_start)(
        Objective(model, cross_entropy, labels), x, threat, seeds
    )
    kinds = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}
    theirs = kinds[threat.norm](rel_stepsize=0.3, steps=7, random_start=random_start)
    theirs.get_random_start = lambda x0, epsilon: eagerpy.astensor(threat.random_start(x0.raw, seeds))
    images = theirs.run(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, labels, epsilon=threat.eps)
    torch.testing.assert_close(ours, images, rtol=0, atol=2e-6)
    assert (ours - x).abs().max() > 0.02


def test_pgd_ascends_and_keeps_the_best_restart() -> None:
    model, (x, labels) = trained(5), pictures(30, 5)
    objective, seeds = Objective(model, margin, labels), torch.arange(30)
    with torch.no_grad():
        one = [objective(PGD(steps=2, step_size=1.0)(objective, x, BALLS[0], seeds + i)) for i in range(3)]
        best = objective(PGD(steps=2, step_size=1.0, restarts=3)(objective, x, BALLS[0], seeds))
    torch.testing.assert_close(best, torch.stack(one).amax(dim=0))
    assert (best > objective(x)).all() and not torch.equal(best, one[0])


def test_pgd_does_not_depend_on_the_batch_nor_on_the_global_seed() -> None:
    model, (x, labels) = trained(5), pictures(12, 5)
    ids = [f"a/{i}.png" for i in range(12)]
    whole = PGD()(Objective(model, cross_entropy, labels), x, BALLS[0], sample_seeds(ids, 0))
    torch.manual_seed(123)
    index = torch.tensor([9, 2, 5])
    few = sample_seeds([ids[i] for i in index], 0)
    part = PGD()(Objective(model, cross_entropy, labels).select(index), x[index], BALLS[0], few)
    torch.testing.assert_close(part, whole[index], rtol=0, atol=1e-6)
    other = PGD()(Objective(model, cross_entropy, labels), x, BALLS[0], sample_seeds(ids, 1))
    assert not torch.allclose(other, whole, atol=1e-3)


def test_seeds_are_the_same_for_ever() -> None:
    assert sample_seeds(["cat/1.png", "cat/2.png"], 0, "start").tolist() == [180948830708622711, 3537007480674296320]


@pytest.mark.parametrize("threat", BALLS, ids=lambda ball: ball.norm)
@pytest.mark.parametrize("restarts", [1, 2])
def test_early_drop_fools_whom_the_whole_path_fools(threat: ThreatModel, restarts: int) -> None:
    model, (x, labels) = trained(5), pictures(40, 5)
    attack = PGD(steps=5, restarts=restarts)
    small = ThreatModel(threat.eps / 2, threat.norm)
    seeds = torch.arange(40)
    found = attack.search(Objective(model, cross_entropy, labels), x, small, seeds, misclassified)
    slow = torch.zeros(40, dtype=torch.bool)
    for i in range(40):
        objective = Objective(model, cross_entropy, labels[i : i + 1])
        for restart in range(restarts):
            image = small.random_start(x[i : i + 1], seeds[i : i + 1] + restart)
            slow[i] |= misclassified(model(image), labels[i : i + 1])[0]
            for _ in range(5):
                image.requires_grad_()
                (gradient,) = torch.autograd.grad(objective(image).sum(), image)
                image = small.project(small.ascend(image.detach(), gradient, 0.25 * small.eps), x[i : i + 1])
                slow[i] |= misclassified(model(image), labels[i : i + 1])[0]
    assert torch.equal(misclassified(model(found), labels), slow)
    assert 0 < slow.sum() < 40


def test_early_drop_asks_less_and_leaves_at_the_first_fooling_image() -> None:
    x, labels = pictures(40, 5)
    dropping, plain = Counting(trained(5)), Counting(trained(5))
    threat = ThreatModel(0.2)
    PGD(steps=20).search(Objective(dropping, cross_entropy, labels), x, threat, torch.arange(40), misclassified)
    PGD(steps=20)(Objective(plain, cross_entropy, labels), x, threat, torch.arange(40))
    assert dropping.images < plain.images / 3


def test_pgd_leaves_weights_without_gradients() -> None:
    model, (x, labels) = trained(3), pictures(6, 3)
    model.requires_grad_(True)
    x_adv = PGD(steps=2)(Objective(model, cross_entropy, labels), x, BALLS[0], torch.arange(6))
    assert all(p.grad is None for p in model.parameters()) and not x_adv.requires_grad


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"restarts": 0}, {"step_size": 0.0}, {"restarts": 2, "random_start": False}]
)
def test_pgd_refuses_what_is_no_attack(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="PGD"):
        PGD(**wrong)  # type: ignore[arg-type]


def test_fgsm_rs_is_one_step_from_a_random_start() -> None:
    model, (x, labels) = trained(5), pictures(10, 5)
    threat, seeds = ThreatModel(0.05), torch.arange(10)
    start = threat.random_start(x, seeds).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), labels, reduction="sum"), start)
    expected = (start.detach() + 1.25 * 0.05 * gradient.sign() - x).clamp(-0.05, 0.05) + x
    found = FGSMRS()(Objective(model, cross_entropy, labels), x, threat, seeds)
    torch.testing.assert_close(found, expected.clamp(0, 1))


@pytest.mark.parametrize("threat", BALLS, ids=lambda ball: ball.norm)
def test_n_fgsm_steps_from_noise_of_twice_the_budget_and_keeps_it(threat: ThreatModel) -> None:
    model, (x, labels), seeds = trained(5), pictures(10, 5), torch.arange(10)
    noisy = ThreatModel(2 * threat.eps, threat.norm).random_start(x, seeds).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(noisy), labels, reduction="sum"), noisy)
    direction = (
        gradient.sign() if threat.norm == "linf" else gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    )
    expected = (noisy.detach() + threat.eps * direction).clamp(0, 1)
    found = NFGSM()(Objective(model, cross_entropy, labels), x, threat, seeds)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(threat.project(found, x), found, atol=1e-3)
    assert torch.allclose(ThreatModel(3 * threat.eps, threat.norm).project(found, x), found, atol=1e-6)


def slow_friendly(model: nn.Module, x: Tensor, label: int, threat: ThreatModel, seed: int, limit: float) -> Tensor:
    """One sample alone: climb until it is misclassified by more than ``limit``."""
    x_adv, y = threat.random_start(x[None], torch.tensor([seed])), torch.tensor([label])
    for _ in range(4):
        x_adv.requires_grad_()
        z = model(x_adv)
        wrong = max(v for i, v in enumerate(z[0].tolist()) if i != label) - z[0, label].item()
        if wrong > limit:
            break
        (gradient,) = torch.autograd.grad(F.cross_entropy(z, y), x_adv)
        x_adv = threat.project(threat.ascend(x_adv.detach(), gradient, threat.eps / 2), x[None])
    return x_adv.detach()[0]


@pytest.mark.parametrize("limit", [-0.5, 0.0, 1.0])
def test_friendly_pgd_lets_a_sample_go_once_it_is_fooled_enough(limit: float) -> None:
    model, threat, (x, labels) = Counting(trained(5)), BALLS[0], pictures(20, 5)
    seeds = torch.arange(20) + 3
    found = FriendlyPGD(PGD(4, 0.5), limit)(Objective(model, cross_entropy, labels), x, threat, seeds)
    assert 20 < model.images < 4 * 20
    rows = zip(x, labels.tolist(), seeds.tolist(), strict=True)
    expected = torch.stack([slow_friendly(model.model, image, y, threat, seed, limit) for image, y, seed in rows])
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, PGD(4, 0.5)(Objective(model, cross_entropy, labels), x, threat, seeds))


def test_friendly_pgd_without_a_limit_is_pgd_and_it_needs_labels() -> None:
    model, (x, labels), seeds = trained(5), pictures(10, 5), torch.arange(10)
    objective = Objective(model, cross_entropy, labels)
    friendly = FriendlyPGD(PGD(3), margin=float("inf"))
    assert torch.equal(friendly(objective, x, BALLS[0], seeds), PGD(3)(objective, x, BALLS[0], seeds))
    with pytest.raises(InputError, match="needs an attack on labels"):
        friendly(Objective(model, kl_from_logits, model(x)), x, BALLS[0], seeds)


# Every attack


@pytest.mark.parametrize("threat", BALLS, ids=lambda ball: ball.norm)
@pytest.mark.parametrize("attack", [PGD(), FGSMRS(), FriendlyPGD(PGD())], ids=lambda attack: type(attack).__name__)
def test_training_attacks_raise_the_error_within_the_ball(attack: Attack, threat: ThreatModel) -> None:
    model = trained(5)
    x, labels = standing_pictures(model, 60, 5)
    images = attack(Objective(model, cross_entropy, labels), x, threat, torch.arange(len(x)))
    assert misclassified(model(images), labels).float().mean() > 0.3
    assert torch.allclose(threat.project(images, x), images, atol=1e-6)


@pytest.mark.parametrize("threat", BALLS, ids=lambda ball: ball.norm)
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("name", ["pgd-10", "apgd-ce", "apgd-dlr"])
def test_evaluation_attacks_raise_the_error_within_the_ball(name: str, kind: str, threat: ThreatModel) -> None:
    model = trained(5, kind)
    x, labels = standing_pictures(model, 40, 5)
    found = attacks.find(name)(model, x, labels, threat, [str(i) for i in range(len(x))], 0)
    assert misclassified(model(found.images), labels).float().mean() > 0.3
    assert torch.allclose(threat.project(found.images, x), found.images, atol=1e-6)
    assert set(found.by) == {name}


@pytest.mark.parametrize(
    ("n_classes", "runs"),
    [
        (2, ("apgd-ce", "apgd-margin", "fab", "square")),
        (5, ("apgd-ce", "apgd-t", "fab-t", "square")),
    ],
)
def test_autoattack_with_few_classes(n_classes: int, runs: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    """At an eps that leaves some standing, so that every stage runs; it fools whom each part alone fools."""
    model, threat = trained(n_classes), ThreatModel(0.04)
    x, labels = standing_pictures(model, 24, n_classes)
    ids = [str(i) for i in range(len(x))]
    attack = attacks.find("autoattack")
    assert attack.runs(n_classes) == runs
    torch.manual_seed(5)
    expected, tracer = torch.rand(3), sys.gettrace()
    torch.manual_seed(5)
    found = attack(model, x, labels, threat, ids, seed=0)
    assert torch.equal(torch.rand(3), expected), "the global generator was touched"
    assert sys.gettrace() is tracer
    fooled = misclassified(model(found.images), labels)
    assert 0 < fooled.sum() < len(x)
    assert {by for by, wrong in zip(found.by, fooled.tolist(), strict=True) if not wrong} == {"square"}
    for part in ("pgd-20", "apgd-ce", "apgd-dlr"):
        alone = attacks.find(part)(model, x, labels, threat, ids, 0)
        assert not (misclassified(model(alone.images), labels) & ~fooled).any(), part
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "n_classes", "runs"),
    [
        ("autoattack", 4, ("apgd-ce", "apgd-t", "fab-t", "square")),
        ("apgd-ce", 2, ("apgd-ce",)),
        ("apgd-dlr", 3, ("apgd-dlr",)),
        ("apgd-dlr", 2, ("apgd-margin",)),
        ("pgd-7", 2, ("pgd-7",)),
    ],
)
def test_what_an_attack_runs(name: str, n_classes: int, runs: tuple[str, ...]) -> None:
    assert attacks.find(name).runs(n_classes) == runs


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "autoattack"])
@pytest.mark.parametrize("n", [1, 2])
def test_single_samples(name: str, n: int) -> None:
    model = trained(2)
    x, labels = standing_pictures(model, 6, 2)
    found = attacks.find(name)(model, x[:n], labels[:n], ThreatModel(0.3), ["a", "b"][:n], 0)
    assert found.images.shape == x[:n].shape and misclassified(model(found.images), labels[:n]).all()


def test_apgd_runs_once_and_margin_replaces_dlr_for_two_classes() -> None:
    x, labels = standing_pictures(trained(2), 8, 2)
    for name, runs in [("apgd-ce", ("apgd-ce",)), ("apgd-dlr", ("apgd-margin",))]:
        model = Counting(trained(2))
        attack = attacks.find(name)
        attack(model, x, labels, ThreatModel(1e-4), [str(i) for i in range(len(x))], 0)
        assert attack.runs(2) == runs
        # 100 iterations from one start, the clean and the final look, and one image for the number of classes.
        assert model.images == len(x) * (101 + 2) + 1


class Dizzy(nn.Module):
    """A randomised defence."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(x + 0.3 * torch.randn_like(x))
        return z


class Sure(Dizzy):
    """Probabilities instead of logits."""

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(x)
        return z.softmax(dim=-1)


@pytest.mark.parametrize(("defence", "flag"), [(Dizzy, "randomized"), (Sure, "probabilities")])
def test_autoattack_flags_are_collected(defence: type[Dizzy], flag: str, caplog: pytest.LogCaptureFixture) -> None:
    model = trained(5)
    x, labels = standing_pictures(model, 6, 5)
    ids = [str(i) for i in range(len(x))]
    found = attacks.find("autoattack")(defence(model), x, labels, ThreatModel(0.5), ids, 0)
    assert found.flags[flag] == 1 and not caplog.records
    assert not attacks.find("autoattack")(model, x, labels, ThreatModel(0.5), ids, 0).flags


@dataclass(frozen=True)
class Fools:
    """Blackens the images of one class, and remembers what it was given."""

    label: int
    asked: list[str]
    name: str = "fools"

    def runs(self, n_classes: int) -> tuple[str, ...]:
        return (f"fools-{self.label}",)

    def __call__(
        self, model: nn.Module, x: Tensor, labels: Tensor, threat: ThreatModel, ids: list[str], seed: int
    ) -> attacks.Found:
        self.asked.extend(ids)
        images = torch.where((labels == self.label).view(-1, 1, 1, 1), torch.zeros_like(x), x)
        return attacks.Found(images, [f"fools-{self.label}"] * len(x))


def test_a_cascade_hands_on_what_stands() -> None:
    class Brightness(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.one_hot((x.flatten(1).mean(dim=1) * 10).round().long(), 4).float()

    labels = torch.tensor([1, 2, 3, 2])
    x = (labels / 10).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()
    ids, asked = ["a", "b", "c", "d"], [list[str](), list[str](), list[str]()]
    cascade = Cascade("all", tuple(Fools(label, ids_) for label, ids_ in zip((2, 1, 3), asked, strict=True)))
    found = cascade(Brightness(), x, labels, ThreatModel(0.5), ids, 0)
    assert asked == [["a", "b", "c", "d"], ["a", "c"], ["c"]]
    assert found.by == ["fools-1", "fools-2", "fools-3", "fools-2"]
    assert not found.images.any()
    assert cascade.runs(4) == ("fools-2", "fools-1", "fools-3")


def test_apgd_finds_what_its_parts_find() -> None:
    model = trained(5)
    x, labels = standing_pictures(model, 40, 5)
    ids, threat = [str(i) for i in range(len(x))], ThreatModel(0.04)
    stand = torch.ones(len(x), dtype=torch.bool)
    for part in ("pgd-10", "apgd-ce", "apgd-dlr"):
        stand &= ~misclassified(model(attacks.find(part)(model, x, labels, threat, ids, 0).images), labels)
    found = attacks.find("apgd-ce+dlr")(model, x, labels, threat, ids, 0)
    assert 0 < int(stand.sum()) < len(x)
    # The library draws for a whole batch, so a sample at the border may fall in one batch and not in another.
    assert int((~misclassified(model(found.images), labels) ^ stand).sum()) <= 1
    assert torch.equal(threat.project(found.images, x), found.images)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("apgd-cc", "Did you mean apgd-ce"),
        ("autoatack", "Did you mean autoattack"),
        ("pgd", "Did you mean pgd-20"),
        ("pgd-0", "no steps"),
        ("zzz", "Known: "),
    ],
)
def test_unknown_attacks_offer_the_nearest(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        attacks.find(name)


def test_the_table_names_what_find_finds() -> None:
    for name in attacks.EVALUATION:
        if name != "clean":
            assert attacks.find(name.replace("N", "3")).name == name.replace("N", "3")
