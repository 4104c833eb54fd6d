"""The threat model: parsing budgets, projecting, starting and stepping; against slow references."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from apd.attacks.objectives import Loss, Objective, cross_entropy, margin
from apd.attacks.pgd import PGD
from apd.attacks.threat import Norm, ThreatModel, format_eps, parse_eps
from apd.errors import InputError

from .refusals import meant, refused


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4/255", 4 / 255),
        ("0.5/255", 0.5 / 255),
        (" 1 / 255 ", 1 / 255),
        ("0.03", 0.03),
        (0, 0.0),
        (1e-3, 1e-3),
        ("1", 1),
    ],
)
def test_eps_is_read(text: str | float, value: float) -> None:
    assert parse_eps(text) == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize("text", ["4", "-1/255", "nan", "inf", "four", "1/0", "", "1/2/3", "1e999", "--1", "4/255/"])
def test_bad_eps_is_refused(text: str) -> None:
    with refused("eps", text or "''"):
        parse_eps(text)


@pytest.mark.parametrize(("text", "hint"), [("255", "8/255"), (128.0, "8/255"), ("4", "4/255"), ("8/4", "8/255")])
def test_eps_above_the_range_hints_at_a_budget_that_makes_sense(text: str | float, hint: str) -> None:
    with refused("eps", "[0,1]", str(text), hint) as told:
        parse_eps(text)
    assert "255/255" not in str(told.value) and "4/255/" not in str(told.value)


def test_eps_of_4_offers_255ths() -> None:
    with refused("4", meant("4/255")):
        parse_eps(4)
    assert parse_eps("4", "l2") == 4


@pytest.mark.parametrize("text", ["1/255", "0.25/255", "16/255", "0.3", "0", "0.0123"])
def test_format_eps_reads_back(text: str) -> None:
    assert format_eps(parse_eps(text)) == text


def test_eps_of_other_norms_is_no_number_of_levels() -> None:
    assert format_eps(0.5, "l2") == "0.5" and format_eps(1 / 255, "l2") == "0.00392157"
    assert format_eps(12.0, "l1") == "12" and format_eps(0.2) == "51/255"


@pytest.mark.parametrize("eps", [-0.1, 2.0, math.nan])
def test_threat_model_refuses_bad_eps(eps: float) -> None:
    with pytest.raises(InputError):
        ThreatModel(eps)


def test_threat_model_refuses_unknown_norm() -> None:
    with refused("norm", "linf", "l2", "l1", "l3"):
        ThreatModel(0.1, "l3")  # type: ignore[arg-type]


def slow_projection(x_adv: torch.Tensor, x: torch.Tensor, eps: float, norm: str) -> torch.Tensor:
    """Pixel by pixel, in Python floats."""
    images = []
    for image, clean in zip(x_adv.tolist(), x.tolist(), strict=True):
        a, b = torch.tensor(image).flatten().tolist(), torch.tensor(clean).flatten().tolist()
        delta = [p - q for p, q in zip(a, b, strict=True)]
        if norm == "linf":
            delta = [max(-eps, min(eps, d)) for d in delta]
        else:
            length = math.sqrt(sum(d * d for d in delta))
            delta = [d * eps / length if length > eps else d for d in delta]
        images.append([max(0.0, min(1.0, q + d)) for q, d in zip(b, delta, strict=True)])
    return torch.tensor(images).view_as(x)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("linf", 0.0), ("l2", 0.5), ("l2", 0.0)])
def test_projection_agrees_with_the_slow_one(norm: str, eps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 5, 5, generator=generator)
    x_adv = x + torch.randn(x.shape, generator=generator) * torch.tensor([0.0, 0.01, 0.1, 1.0]).view(-1, 1, 1, 1)
    projected = ThreatModel(eps, norm).project(x_adv, x)  # type: ignore[arg-type]
    torch.testing.assert_close(projected, slow_projection(x_adv, x, eps, norm), rtol=0, atol=1e-6)
    length = (projected - x).flatten(1).norm(p=2 if norm == "l2" else math.inf, dim=1)
    assert length.max() <= eps + 1e-6 and projected.min() >= 0 and projected.max() <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_start_fills_the_ball_whatever_the_batch(norm: str) -> None:
    x = torch.full((200, 3, 4, 4), 0.5)
    threat = ThreatModel(0.2, norm)  # type: ignore[arg-type]
    start = threat.random_start(x, torch.arange(200))
    length = (start - x).flatten(1).norm(p=2 if norm == "l2" else math.inf, dim=1)
    assert length.max() <= 0.2 + 1e-6 and length.min() > 0.1
    assert len({row.sum().item() for row in start}) == 200
    assert abs((start - x).mean()) < 0.005
    torch.testing.assert_close(threat.random_start(x[17:19], torch.tensor([17, 18])), start[17:19], rtol=0, atol=0)
    if norm == "linf":
        assert (start - x).std() == pytest.approx(0.2 / math.sqrt(3), rel=0.02)
    else:
        # Uniform in a ball of d dimensions: the share within radius r is (r / eps)^d, so log(r / eps) has mean -1/d.
        assert (length / 0.2).log().mean() == pytest.approx(-1 / 48, rel=0.3)


def test_ascend_is_the_steepest_step() -> None:
    gradient = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]]])
    x = torch.zeros(2, 1, 1, 2)
    assert ThreatModel(0.1).ascend(x, gradient, 0.5).tolist() == [[[[0.5, -0.5]]], [[[0.0, 0.0]]]]
    l2 = ThreatModel(0.1, "l2").ascend(x, gradient, 0.5)
    torch.testing.assert_close(l2, torch.tensor([[[[0.3, -0.4]]], [[[0.0, 0.0]]]]))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("size", [1e-38, 1e-25, 1e-13, 1e30])
def test_a_step_is_as_long_where_the_gradient_is_tiny(norm: Norm, size: float) -> None:
    """Where a model is certain, that of the cross-entropy is 1e-13 and less, and squares of 1e-23 are 0 in float32."""
    x, gradient = torch.full((2, 3, 4, 4), 0.5), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    threat = ThreatModel(0.1, norm)
    torch.testing.assert_close(threat.ascend(x, gradient * size, 0.05), threat.ascend(x, gradient, 0.05))


def test_pgd_finds_as_much_where_the_cross_entropy_is_all_but_zero() -> None:
    weights = 100 * torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    x, labels = torch.full((64, 3, 2, 2), 0.5), torch.zeros(64, dtype=torch.int64)

    def logits(images: Tensor) -> Tensor:
        return (images - 0.5).flatten(1) @ weights + torch.tensor([50.0, 0.0, 0.0])

    def robust(loss: Loss) -> float:
        found = PGD(20)(Objective(logits, loss, labels), x, ThreatModel(0.15, "l2"), torch.arange(64))
        return float((logits(found).argmax(dim=1) == labels).float().mean())

    assert robust(cross_entropy) == robust(margin) == 0


@pytest.mark.parametrize(
    ("eps", "norm", "doubtful"),
    [
        *((1 / 255, "l2", True), (0.5 / 255, "l1", True), (16 / 255, "l2", True), (1 / 255, "linf", False)),
        *((0.5, "l2", False), (0.05, "l2", False), (12.0, "l1", False), (0.0, "l2", False), (17 / 255, "l2", False)),
    ],
)
def test_a_budget_of_linf_is_doubted_in_another_norm(eps: float, norm: Norm, doubtful: bool) -> None:
    doubt = ThreatModel(eps, norm).doubt()
    assert (doubt is not None) == doubtful and (doubt is None or norm in doubt)
