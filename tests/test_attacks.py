"""Objectives and training attacks: against an independent library, slow references, and small trained models."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apd.attacks import (
    FGSMRS,
    NFGSM,
    PGD,
    Attack,
    Objective,
    beyond_margin,
    cross_entropy,
    dlr,
    kl_of_pair,
    kl_to_logits,
    kl_to_probabilities,
    margin,
    misclassified,
)
from apd.attacks.threat import ThreatModel
from apd.util.seeds import sample_seeds

from .refusals import refused
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
        "kl": kl_to_probabilities(z, other.softmax(dim=-1)),
        "margin": margin(z, labels),
        "dlr": dlr(z, labels),
    }
    for name, values in expected.items():
        torch.testing.assert_close(found[name], torch.tensor(values), msg=name)
    torch.testing.assert_close(kl_to_logits(z, other), found["kl"])
    torch.testing.assert_close(kl_of_pair(torch.cat([other, z], dim=1), labels), found["kl"])
    assert torch.equal(margin(z, labels) > 0, misclassified(z, labels))


def test_kl_takes_hard_targets() -> None:
    z, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(kl_to_probabilities(z, F.one_hot(labels, 3).float()), cross_entropy(z, labels))


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


def test_pgd_ascends_the_objective() -> None:
    model, (x, labels) = trained(5), pictures(30, 5)
    objective, seeds = Objective(model, margin, labels), torch.arange(30)
    with torch.no_grad():
        found = objective(PGD(steps=2, step_size=1.0)(objective, x, BALLS[0], seeds))
    assert (found > objective(x)).all()


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
def test_early_drop_fools_whom_the_whole_path_fools(threat: ThreatModel) -> None:
    model, (x, labels) = trained(5), pictures(40, 5)
    attack = PGD(steps=5, leave=misclassified)
    small = ThreatModel(threat.eps / 2, threat.norm)
    seeds = torch.arange(40)
    found = attack(Objective(model, cross_entropy, labels), x, small, seeds)
    slow = torch.zeros(40, dtype=torch.bool)
    for i in range(40):
        objective = Objective(model, cross_entropy, labels[i : i + 1])
        image = small.random_start(x[i : i + 1], seeds[i : i + 1])
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
    PGD(steps=20, leave=misclassified)(Objective(dropping, cross_entropy, labels), x, threat, torch.arange(40))
    PGD(steps=20)(Objective(plain, cross_entropy, labels), x, threat, torch.arange(40))
    assert dropping.images < plain.images / 3


def test_pgd_leaves_weights_without_gradients() -> None:
    model, (x, labels) = trained(3), pictures(6, 3)
    model.requires_grad_(True)
    x_adv = PGD(steps=2)(Objective(model, cross_entropy, labels), x, BALLS[0], torch.arange(6))
    assert all(p.grad is None for p in model.parameters()) and not x_adv.requires_grad


@pytest.mark.parametrize(("wrong", "got"), [({"steps": 0}, "0 and 0.25"), ({"step_size": 0.0}, "10 and 0.0")])
def test_pgd_refuses_what_is_no_attack(wrong: dict[str, float], got: str) -> None:
    with refused("steps", "step_size", got):
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
    with refused("eps=0.6", "n-fgsm", "pgd"):
        NFGSM()(Objective(model, cross_entropy, labels), x, ThreatModel(0.6), seeds)
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
    found = PGD(4, 0.5, leave=beyond_margin(limit))(Objective(model, cross_entropy, labels), x, threat, seeds)
    assert 20 < model.images < 4 * 20
    rows = zip(x, labels.tolist(), seeds.tolist(), strict=True)
    expected = torch.stack([slow_friendly(model.model, image, y, threat, seed, limit) for image, y, seed in rows])
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, PGD(4, 0.5)(Objective(model, cross_entropy, labels), x, threat, seeds))


def test_friendly_pgd_without_a_limit_is_pgd_and_it_needs_labels() -> None:
    model, (x, labels), seeds = trained(5), pictures(10, 5), torch.arange(10)
    objective = Objective(model, cross_entropy, labels)
    friendly = PGD(3, leave=beyond_margin(float("inf")))
    assert torch.equal(friendly(objective, x, BALLS[0], seeds), PGD(3)(objective, x, BALLS[0], seeds))
    with refused("train.attack.stop_margin", "method.inner=ce"):
        friendly(Objective(model, kl_to_logits, model(x)), x, BALLS[0], seeds)


# Every training attack


@pytest.mark.parametrize("threat", BALLS, ids=lambda ball: ball.norm)
@pytest.mark.parametrize(
    "attack", [PGD(), FGSMRS(), PGD(leave=beyond_margin(0.0))], ids=lambda attack: type(attack).__name__
)
def test_training_attacks_raise_the_error_within_the_ball(attack: Attack, threat: ThreatModel) -> None:
    model = trained(5)
    x, labels = standing_pictures(model, 60, 5)
    images = attack(Objective(model, cross_entropy, labels), x, threat, torch.arange(len(x)))
    assert misclassified(model(images), labels).float().mean() > 0.3
    assert torch.allclose(threat.project(images, x), images, atol=1e-6)
