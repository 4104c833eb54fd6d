"""The L1 ball: projection against scipy, random starts, sparse steps, and attacks within it on a linear model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apd import attacks
from apd.attacks import AttackBatch, misclassified
from apd.attacks.threat import ThreatModel

from .test_attacks import standing_pictures
from .toys import trained


def nearest_by_scipy(delta: np.ndarray, x: np.ndarray, eps: float) -> np.ndarray:
    """The same perturbation as a quadratic programme in its positive and its negative part."""
    from scipy.optimize import minimize

    n = len(delta)
    bounds = [(0, 1 - v) for v in x] + [(0, v) for v in x]
    found = minimize(
        lambda parts: 0.5 * np.sum((parts[:n] - parts[n:] - delta) ** 2),
        np.zeros(2 * n),
        jac=lambda parts: np.concatenate([parts[:n] - parts[n:] - delta, delta - parts[:n] + parts[n:]]),
        bounds=bounds,
        constraints={"type": "ineq", "fun": lambda parts: eps - parts.sum(), "jac": lambda parts: -np.ones(2 * n)},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.x[:n] - found.x[n:]


@pytest.mark.parametrize("eps", [0.0, 0.3, 1.0, 50.0])
def test_projection_is_the_nearest_allowed_image(eps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 3, 2, 2, generator=generator)
    x[0, 0] = 0.0
    x[1, 0] = 1.0
    x_adv = x + torch.randn(x.shape, generator=generator) * torch.tensor([0.01, 0.1, 0.3, 0.5, 1.0, 3.0]).view(
        -1, 1, 1, 1
    )
    projected = ThreatModel(eps, "l1").project(x_adv, x)
    for image, clean, given in zip(projected, x, x_adv, strict=True):
        delta = (given - clean).flatten().double().numpy()
        expected = nearest_by_scipy(delta, clean.flatten().double().numpy(), eps)
        assert np.abs((image - clean).flatten().numpy() - expected).max() < 2e-4
    assert (projected - x).abs().flatten(1).sum(dim=1).max() <= eps + 1e-5
    assert projected.min() >= 0 and projected.max() <= 1


def test_projection_with_a_share_per_image_and_of_what_fits() -> None:
    x = torch.full((2, 3, 2, 2), 0.5)
    x_adv = x + 0.1
    projected = ThreatModel(1.0, "l1", shares=torch.tensor([0.6, 2.0])).project(x_adv, x)
    torch.testing.assert_close((projected - x).flatten(1).sum(dim=1), torch.tensor([0.6, 1.2]))


def test_random_start_fills_the_ball_whatever_the_batch() -> None:
    x = torch.full((200, 3, 4, 4), 0.5)
    threat = ThreatModel(0.4, "l1")
    start = threat.random_start(x, torch.arange(200))
    length = (start - x).abs().flatten(1).sum(dim=1)
    assert length.max() <= 0.4 + 1e-6 and abs((start - x).mean()) < 0.001
    # Uniform in a ball of 48 dimensions: log(r / eps) has mean -1/48.
    assert (length / 0.4).log().mean() == pytest.approx(-1 / 48, rel=0.3)
    torch.testing.assert_close(threat.random_start(x[7:9], torch.tensor([7, 8])), start[7:9], rtol=0, atol=0)


def test_a_step_is_sparse_as_long_as_asked_and_leaves_out_full_pixels() -> None:
    gradient = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
    x = torch.full((1, 3, 4, 4), 0.5)
    x.view(-1)[47] = 1.0
    step = ThreatModel(1.0, "l1").ascend(x, gradient, 0.3) - x
    changed = step.flatten().nonzero().flatten().tolist()
    assert changed == [0, 1, 46] and step.flatten()[47] == 0  # 5 % of 48 values
    assert step.abs().sum() == pytest.approx(0.3)
    assert step.flatten()[0] < 0 < step.flatten()[46]
    wide = ThreatModel(20.0, "l1").ascend(x, gradient, 10.0) - x
    assert int((wide != 0).sum()) >= 10 and wide.abs().max() <= 1


def linear_binary(scale: float = 1.0) -> tuple[nn.Module, Tensor]:
    """A linear model of two classes: the margin of class 0 is ``w x + b``."""
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(3 * 4 * 4, generator=generator) * scale
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([w / 2, -w / 2]))
        model[1].bias.copy_(torch.tensor([-w.sum() / 2 / 2, w.sum() / 2 / 2]))
    return model.requires_grad_(False), w


def best_within_l1(w: Tensor, x: Tensor, eps: float) -> float:
    """How far a linear function falls within the L1 ball and the box: greedily, the steepest values first."""
    room = torch.where(w > 0, x, 1 - x)
    left, fall = eps, 0.0
    for i in w.abs().argsort(descending=True).tolist():
        spent = min(left, float(room[i]))
        fall, left = fall + spent * abs(float(w[i])), left - spent
    return fall


@pytest.mark.parametrize("steps", [100])
def test_pgd_reaches_the_optimum_of_a_linear_model(steps: int) -> None:
    model, w = linear_binary()
    x = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    labels, threat = torch.zeros(8, dtype=torch.long), ThreatModel(1.5, "l1")
    objective = attacks.Objective(model, attacks.margin, labels)
    found = attacks.PGD(steps, step_size=0.1)(objective, x, threat, torch.arange(8))
    gained = objective(found) - objective(x)
    best = torch.tensor([best_within_l1(w, image.flatten(), 1.5) for image in x])
    assert (gained <= best + 1e-4).all() and (gained >= 0.9 * best).all()


@pytest.mark.parametrize("name", ["pgd-20", "apgd-ce", "apgd-ce+dlr", "fmn", "square"])
def test_attacks_stay_in_the_ball_and_fool(name: str, few_queries: None) -> None:
    model, threat = trained(5), ThreatModel(5.0, "l1")
    x, labels = standing_pictures(model, 20, 5)
    found = attacks.find(name)(model, AttackBatch(x, labels, [str(i) for i in range(len(x))]), threat)
    assert (found.images - x).abs().flatten(1).sum(dim=1).max() <= 5.0 + 1e-4
    assert found.images.min() >= 0 and found.images.max() <= 1
    assert misclassified(model(found.images), labels).float().mean() > 0.3


def test_slope_and_half_range_by_norm() -> None:
    gradient = torch.tensor([[[[3.0, -4.0]]]])
    assert [float(ThreatModel(0.1, norm).slope(gradient)) for norm in ("linf", "l2", "l1")] == [7.0, 5.0, 4.0]
    assert [ThreatModel(0.1, norm).half_range(4).eps for norm in ("linf", "l2", "l1")] == [0.5, 1.0, 2.0]
