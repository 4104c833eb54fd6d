"""The switches of robust and of cheap training, each against a slow reference that is written from its formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apd.attacks import sample_seeds
from apd.attacks.threat import ThreatModel
from apd.data import load_data
from apd.data.batch import Batch
from apd.methods import find_method
from apd.models import DualEncoder
from apd.models.classifier import PromptedCLIP
from apd.models.prompts import PromptSpec
from apd.settings.train import AttackSettings, OptimizerSettings, TrainSettings
from apd.training.average import swa_share, update_average
from apd.training.budget import shares_of
from apd.training.optim import build_optimizer
from apd.training.schedule import warmed_up
from apd.training.sharpness import awp, sam, shifted
from apd.training.step import TrainStep
from apd.util.seeds import shuffled

from .refusals import refused
from .training import PLAIN, settings, start

EPS = 4 / 255
SPEC = PromptSpec(text_tokens=2, visual_tokens=2)
LABELS = torch.tensor([0, 2, 1, 1])
X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def build(clip: DualEncoder, name: str = "advvlp", **options: object):
    method = find_method(name)
    return method(
        method.Settings(**{"prompts": SPEC, **options}), PromptedCLIP(clip, None, ["cat", "dog", "piano"]), seed=0
    )


# Perturbed prompts


def quadratic(*values: list[float]) -> tuple[list[nn.Parameter], Callable[[], Tensor]]:
    """Parameters and ``1/2 sum(k * p_k^2)``, whose gradient is ``k * p_k``."""
    parameters = [nn.Parameter(torch.tensor(value)) for value in values]
    return parameters, lambda: torch.stack([0.5 * k * (p**2).sum() for k, p in enumerate(parameters, 1)]).sum()


def test_the_step_of_sam_on_a_quadratic() -> None:
    parameters, loss = quadratic([3.0], [2.0, 0.0])
    loss().backward()
    with shifted(parameters, sam(parameters, rho=0.5)):
        # g = (3 | 4, 0), ||g|| = 5, v = 0.5 g / 5 = (0.3 | 0.4, 0)
        torch.testing.assert_close(torch.cat(list(parameters)), torch.tensor([3.3, 2.4, 0.0]))
        for p in parameters:
            p.grad = None
        loss().backward()
    assert [p.tolist() for p in parameters] == [[3.0], [2.0, 0.0]]
    torch.optim.SGD(parameters, lr=0.1).step()
    torch.testing.assert_close(torch.cat(list(parameters)), torch.tensor([3 - 0.33, 2 - 0.1 * 2 * 2.4, 0.0]))


def test_awp_is_relative_to_each_tensor_s_norm() -> None:
    parameters, loss = quadratic([3.0, 4.0], [0.0, 0.1], [0.0])
    loss().backward()
    first, second, third = awp(parameters, gamma=0.01)
    torch.testing.assert_close(first, 0.01 * 5 * torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(second, 0.01 * 0.1 * torch.tensor([0.0, 1.0]))
    assert third.tolist() == [0.0]


def test_a_shift_is_undone_to_the_last_bit_also_after_an_error() -> None:
    parameters = [nn.Parameter(torch.randn(50)) for _ in range(3)]
    before = [p.detach().clone() for p in parameters]
    with pytest.raises(RuntimeError), shifted(parameters, [torch.randn(50) * 1e3 for _ in parameters]):
        assert not torch.equal(parameters[0], before[0])
        raise RuntimeError
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


# Whole trainings


def climbed(x: Tensor, x_adv: Tensor, gradient: Tensor, eps: float) -> Tensor:
    """A step of eps along the sign of the gradient, inside the ball and [0,1]."""
    return (x + (x_adv.detach() + eps * gradient.sign() - x).clamp(-eps, eps)).clamp(0, 1)


def slow_rate(step: int, warmup: int, steps: int) -> float:
    """Linear warm-up over so many steps, then half a cosine."""
    turned = max(0, step - warmup) / (steps - warmup)
    return 0.05 * min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * turned))


def added(parameters: list[Tensor], changes: list[Tensor]) -> None:
    for p, change in zip(parameters, changes, strict=True):
        p.data.add_(change)


def slow_training(
    clip: DualEncoder,
    colours: Path,
    *,
    replays: int = 0,
    carried: bool = False,
    shift: Callable[[list[Tensor], list[Tensor]], list[Tensor]] | None = None,
    eps_at: Callable[[int], float] = lambda step: EPS,
    smoothing: float = 0.0,
) -> list[list[Tensor]]:
    """AdvVLP by SGD, all towers rerun in every pass: the prompts after each step.

    With ``replays``, free training: a batch is visited so often, and its pixels move along the gradient of each pass.
    With ``carried``, they move once a visit and are found again in the next epoch.
    """
    data = load_data(colours, shots=4, seed=0)
    train = data.train.decode(clip.info.preprocessing)
    method = find_method("advvlp")
    bare = PromptedCLIP(clip, None, data.class_names, data.templates)
    model = method(settings(clip, colours, *PLAIN).method.settings, bare, 0).student
    prompts = list(model.prompts.parameters())
    per_epoch, trajectory = math.ceil(len(train) / 8), []
    steps = 3 * per_epoch
    kept = ThreatModel(EPS).random_start(train.pixels(), sample_seeds(train.ids, 0, "start"))

    def gradients(x_adv: Tensor, wanted: list[Tensor], smoothing: float = 0.0) -> list[Tensor]:
        z, n = model(x_adv), len(data.class_names)
        target = F.one_hot(labels, n) * (1 - smoothing) + smoothing / n
        return list(torch.autograd.grad(-(target * z.log_softmax(1)).sum(1).mean(), wanted, allow_unused=True))

    for step in range(steps):
        eps = eps_at(step)
        threat = ThreatModel(eps)
        if step % max(1, replays) == 0:
            epoch, index = divmod(step // max(1, replays), per_epoch)
            chosen = torch.tensor(shuffled(train.ids, 0, "order", epoch)[8 * index :][:8])
            x, labels = train.pixels(chosen), train.labels[chosen]
            x_adv = threat.random_start(x, sample_seeds([train.ids[i] for i in chosen], 0, "start", step))
        if carried:
            x_adv = kept[chosen]
        for _ in range(0 if replays or carried else 2):
            x_adv.requires_grad_()
            (g,) = gradients(x_adv, [x_adv])
            x_adv = climbed(x, x_adv, g, eps)
        x_adv = x_adv.detach().requires_grad_()
        *got, pixels = gradients(x_adv, [*prompts, x_adv], smoothing)
        if shift is not None:
            values = [p.detach().clone() for p in prompts]
            added(prompts, shift(values, got))
            got = gradients(x_adv.detach(), prompts, smoothing)
            for p, value in zip(prompts, values, strict=True):
                p.data.copy_(value)
        if replays or carried:
            x_adv = climbed(x, x_adv, pixels, eps)
        kept[chosen] = x_adv.detach()
        rate = slow_rate(step, per_epoch, steps)
        added(prompts, [-(rate * g) for g in got])
        trajectory.append([p.detach().clone() for p in prompts])
    return trajectory


def by_sam(_: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    length = torch.cat([g.flatten() for g in gradients]).norm()
    return [0.05 * g / length for g in gradients]


def by_awp(values: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    return [0.1 * p.norm() * g / g.norm() for p, g in zip(values, gradients, strict=True)]


@pytest.fixture(scope="module")
def plain(shallow: DualEncoder, colours: Path) -> list[list[Tensor]]:
    """The prompts after each step of the slow loop without any switch."""
    return slow_training(shallow, colours)


@pytest.mark.parametrize(
    ("switches", "reference"),
    [
        ((), {}),
        (("train.attack.kind=free", "train.attack.replays=4"), {"replays": 4}),
        (("train.attack.kind=carried",), {"carried": True}),
        (("train.optimizer.sam=0.05",), {"shift": by_sam}),
        (("train.optimizer.awp=0.1",), {"shift": by_awp}),
        (
            ("train.attack.kind=free", "train.attack.replays=2", "train.optimizer.sam=0.05"),
            {"replays": 2, "shift": by_sam},
        ),
        (
            ("train.eps_warmup_epochs=2", "train.eps_warmup_from=0.25"),
            {"eps_at": lambda step: EPS * [0.4375, 0.625, 0.8125, 1, 1, 1][step]},
        ),
        (
            ("train.eps_warmup_wait=1", "train.eps_warmup_epochs=1"),
            {"eps_at": lambda step: EPS * [0, 0, 0.5, 1, 1, 1][step]},
        ),
        (("train.label_smoothing=0.3",), {"smoothing": 0.3}),
    ],
    ids=["default", "free", "carried", "sam", "awp", "free-sam", "eps", "eps-wait", "smoothing"],
)
def test_training_is_what_the_slow_loop_does(
    tmp_path: Path,
    shallow: DualEncoder,
    colours: Path,
    plain: list[list[Tensor]],
    switches: tuple[str, ...],
    reference: dict[str, object],
) -> None:
    learned = start(tmp_path / "run", shallow, colours, *PLAIN, *switches).load_prompts()
    wanted = (slow_training(shallow, colours, **reference) if reference else plain)[-1]
    names = [name for name, _ in build(shallow).student.prompts.named_parameters()]
    for name, value in zip(names, wanted, strict=True):
        torch.testing.assert_close(learned[name], value, rtol=1e-4, atol=1e-6)
    if switches:
        others = zip(names, plain[-1], strict=True)
        assert any(not torch.allclose(learned[name], other, rtol=1e-4, atol=1e-6) for name, other in others)


@pytest.mark.parametrize(
    ("last", "steps", "averaged"), [(0.07, 100, 7), (0.55, 100, 55), (0.28, 50, 14), (0.071, 100, 8)]
)
def test_swa_averages_as_many_steps_as_it_is_asked_for(last: float, steps: int, averaged: int) -> None:
    """0.07 times 100 is a little more than 7 in binary numbers."""
    assert sum(swa_share(step, steps, last) < 1 for step in range(steps)) == averaged - 1


@pytest.mark.parametrize(("swa", "last"), [(0.5, 3), (0.6, 4), (1.0, 6), (0.01, 1)])
def test_swa_deploys_the_mean_of_the_last_steps(
    tmp_path: Path, shallow: DualEncoder, colours: Path, plain: list[list[Tensor]], swa: float, last: int
) -> None:
    deployed = start(tmp_path / "run", shallow, colours, *PLAIN, f"train.swa={swa}").load_prompts()
    trajectory = plain[-last:]
    names = [name for name, _ in build(shallow).student.prompts.named_parameters()]
    for number, name in enumerate(names):
        mean = torch.stack([prompts[number] for prompts in trajectory]).mean(0)
        torch.testing.assert_close(deployed[name], mean, rtol=1e-4, atol=1e-6)


def test_before_the_mean_begins_the_average_is_the_prompts_themselves() -> None:
    average, values = {"a": torch.zeros(5)}, torch.randn(10, 5)
    for step, value in enumerate(values):
        update_average(average, {"a": value}, swa_share(step, 10, 0.4))
        if step <= 6:
            assert torch.equal(average["a"], value)
    torch.testing.assert_close(average["a"], values[6:].mean(0))


def test_eps_grows_linearly() -> None:
    assert [warmed_up(step, 4, 0.0) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [warmed_up(step, 0, 0.0) for step in range(2)] == [1.0, 1.0]
    assert [warmed_up(step, 2, 0.5, wait=2) for step in range(5)] == [0.0, 0.0, 0.75, 1.0, 1.0]


def test_no_pass_is_spent_on_an_attack_of_no_budget(shallow: DualEncoder) -> None:
    def attack(*_: object) -> Tensor:
        pytest.fail("there is nothing to search")

    images = TrainStep(build(shallow), attack=attack)(Batch.of(X, LABELS), ThreatModel(0.0))[1]
    assert torch.equal(images, X)


# A budget for each image


@pytest.mark.parametrize("slope", [[1.0, 2.0, 4.0, 5.0], [1.0, 1.0, 1.0, 90.0], [0.0, 0.0, 3.0], [0.0, 0.0], [7.0]])
def test_shares_are_inverse_to_the_slope_within_limits_and_keep_the_mean(slope: list[float]) -> None:
    shares = shares_of(torch.tensor(slope)).tolist()
    assert sum(shares) / len(shares) == pytest.approx(1.0, abs=1e-5)
    assert all(0.5 <= share <= 1.5 for share in shares)
    inside = {round(s * g, 4) for s, g in zip(shares, slope, strict=True) if 0.501 < s < 1.499}
    assert len(inside) <= 1, "inside the limits slope times share is the same for all"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_each_image_is_attacked_within_its_own_budget(shallow: DualEncoder, norm: str) -> None:
    """Against an attack on one image at a time, with its share found by trying out constants."""
    method, eps = build(shallow), EPS if norm == "linf" else 0.5
    own = AttackSettings(steps=2, step_size=0.75)
    step = TrainStep(method, TrainSettings(eps=eps, norm=norm, eps_per_image=True, attack=own))
    got = step(Batch.of(X, LABELS), ThreatModel(eps, norm))[1]

    def gradient(x: Tensor, i: int) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(method.student(x[None]), LABELS[i : i + 1]), x)[0]

    slopes = [float(g.abs().sum() if norm == "linf" else g.norm()) for g in (gradient(x, i) for i, x in enumerate(X))]
    constants = [min(slopes) * 0.5 * (1.001**k) for k in range(6000)]
    shares = min(
        ([min(1.5, max(0.5, c / slope)) for slope in slopes] for c in constants), key=lambda s: abs(sum(s) / 4 - 1)
    )
    assert max(shares) - min(shares) > 0.1
    for i, (x, share) in enumerate(zip(X, shares, strict=True)):
        threat = ThreatModel(share * eps, norm)
        x_adv = threat.random_start(x[None], torch.tensor([i]))[0]
        for _ in range(2):
            g = gradient(x_adv, i)
            way = g.sign() if norm == "linf" else g / g.norm()
            x_adv = threat.project((x_adv + 0.75 * share * eps * way)[None], x[None])[0]
        torch.testing.assert_close(got[i], x_adv, rtol=0, atol=2e-3 * eps)


def test_training_within_l1_stays_in_each_image_s_ball(shallow: DualEncoder) -> None:
    step = TrainStep(
        build(shallow), TrainSettings(eps=3.0, norm="l1", eps_per_image=True, attack=AttackSettings(steps=2))
    )
    x_adv = step(Batch.of(X, LABELS), ThreatModel(3.0, "l1"))[1]
    lengths = (x_adv - X).abs().flatten(1).sum(dim=1)
    assert (lengths > 1.4).all() and lengths.max() <= 4.5 + 1e-3 and abs(float(lengths.mean()) - 3) < 0.2
    assert x_adv.min() >= 0 and x_adv.max() <= 1


@pytest.mark.parametrize(
    ("attack", "name"),
    [({"loss": "kl"}, "advvlp"), ({"kind": "free"}, "advvlp"), ({"stop_margin": 1.0}, "advvlp"), ({}, "trades")],
)
def test_a_budget_for_each_image_needs_a_slope_and_whole_batches(attack: dict[str, object], name: str) -> None:
    section = find_method(name).Settings()
    section.check_training(TrainSettings(attack=attack))
    with refused("train.eps_per_image", by=ValueError):
        section.check_training(TrainSettings(eps_per_image=True, attack=attack))


# The optimiser


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_radam_is_its_algorithm(decay: float) -> None:
    """Liu 2020, algorithm 2, with decoupled weight decay, on one number."""
    p, lr = nn.Parameter(torch.tensor([2.0], dtype=torch.float64)), 0.3
    optimizer = build_optimizer(OptimizerSettings(name="radam", lr=lr, weight_decay=decay), [p])
    value, m, v, rho_max = 2.0, 0.0, 0.0, 2 / (1 - 0.999) - 1
    adapted = set()
    for t in range(1, 12):
        optimizer.zero_grad()
        (p**2 * t).sum().backward()
        optimizer.step()
        g = 2 * value * t
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        rho = rho_max - 2 * t * 0.999**t / (1 - 0.999**t)
        value -= lr * decay * value
        if rho > 5:
            r = math.sqrt((rho - 4) * (rho - 2) * rho_max / ((rho_max - 4) * (rho_max - 2) * rho))
            value -= lr * r * m / (1 - 0.9**t) / math.sqrt(v / (1 - 0.999**t))
        else:
            value -= lr * m / (1 - 0.9**t)
        adapted.add(rho > 5)
        assert p.item() == pytest.approx(value, rel=1e-6)
    assert adapted == {True, False}


# The attack's loss


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "kl"])
def test_the_attack_climbs_the_loss_that_was_asked_for(shallow: DualEncoder, loss: str) -> None:
    method, seeds = build(shallow), torch.arange(4)
    step = TrainStep(method, TrainSettings(attack=AttackSettings(steps=1, loss=loss)))
    _, found = step(Batch.of(X, LABELS), ThreatModel(EPS))
    model, threat = method.student.frozen(), ThreatModel(EPS)
    begin = threat.random_start(X, seeds).requires_grad_()
    expected = []
    for z, z_clean, y in zip(model(begin), model(X), LABELS.tolist(), strict=True):
        others = [float("-inf") if i == y else 0.0 for i in range(3)]
        margin = (z + torch.tensor(others)).max() - z[y]
        ordered = z.sort(descending=True).values
        p, q = z.softmax(0), z_clean.softmax(0)
        expected.append(
            {
                "ce": -p[y].log(),
                "margin": margin,
                "dlr": margin / (ordered[0] - ordered[2]),
                "kl": (q * (q / p).log()).sum(),
            }[loss]
        )
    (g,) = torch.autograd.grad(torch.stack(expected).sum(), begin)
    wanted = (X + (begin.detach() + EPS * g.sign() - X).clamp(-EPS, EPS)).clamp(0, 1)
    assert float((found != wanted).float().mean()) < 0.002  # signs of gradients that are nearly 0
    torch.testing.assert_close(found.mean(), wanted.mean(), rtol=1e-4, atol=1e-6)


def test_only_a_cross_entropy_can_be_replaced(shallow: DualEncoder) -> None:
    method = build(shallow, "apd", variant="rslad")
    margin = TrainSettings(attack=AttackSettings(loss="margin"))
    with refused("train.attack.loss=margin", "train.attack.loss=method"):
        TrainStep(method, margin)(Batch.of(X, LABELS), ThreatModel(EPS))
    images = []
    for inner in ("ce", "mixed"):  # a cross-entropy to hard labels or to mixed ones
        step = TrainStep(build(shallow, "apd", inner=inner), margin)
        images.append(step(Batch.of(X, LABELS), ThreatModel(EPS))[1])
    assert torch.equal(*images)


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"ema": 0.9, "swa": 0.5}, ["train.ema", "train.swa"]),
        ({"optimizer": {"sam": 0.1, "awp": 0.1}}, ["train.optimizer.sam", "awp"]),
        ({"attack": {"kind": "free", "loss": "margin"}}, ["train.attack.loss", "kind=free"]),
        ({"attack": {"kind": "carried", "loss": "kl"}}, ["train.attack.loss", "kind=carried"]),
        ({"attack": {"kind": "free", "stop_margin": 0.0}}, ["train.attack.stop_margin", "kind=pgd"]),
        ({"eps_warmup_from": 0.5}, ["train.eps_warmup_from", "train.eps_warmup_epochs"]),
        ({"validation_attack": "pgd-0"}, ["validation_attack", "pgd-0"]),
    ],
)
def test_switches_that_contradict_each_other_are_refused(wrong: dict, names: list[str]) -> None:
    with refused(*names, by=ValueError):
        TrainSettings(**wrong)
