"""Transfer, universal, patch, EoT and BPDA attacks: on small models whose weakness is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import apd
from apd import attacks
from apd.attacks import (
    BPDA,
    AttackBatch,
    Averaged,
    Patch,
    Preprocessed,
    Source,
    Surroundings,
    Transfer,
    Universal,
    bridged,
    misclassified,
)
from apd.attacks.minimal import CarliniWagner
from apd.attacks.threat import Norm, ThreatModel
from apd.evaluation import EvaluationSettings, surroundings
from apd.evaluation.frozen import Subject
from apd.evaluation.surroundings import Resized, surroundings_of
from apd.models.preprocessing import Preprocessing

from .refusals import refused
from .test_attacks import standing_pictures
from .toys import SIDE, pictures, toy_clip, trained

NAMES = ("a", "b", "c", "d", "e")


def batch_of(model: nn.Module, n: int = 20, n_classes: int = 5) -> AttackBatch:
    x, labels = standing_pictures(model, n, n_classes)
    return AttackBatch(x, labels, [str(i) for i in range(len(x))])


def around(source: nn.Module, learned_on: AttackBatch) -> Surroundings:
    return Surroundings(NAMES, lambda spec: Source(source, f"print of {spec}"), lambda: learned_on)


def test_a_cascade_depends_on_the_source_of_each_of_its_parts() -> None:
    """Of two sources only the last one counted, so that outcomes stayed when the first was trained again."""
    model = trained(5)
    cascade = attacks.Cascade("both", (attacks.find("transfer:a"), attacks.find("transfer:b")))
    found = cascade.prepared(around(model, batch_of(model))).depends_on()
    assert found == {"source": "print of a", "transfer:b source": "print of b"}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_transferred_images_are_made_on_the_source_alone(norm: Norm) -> None:
    model, source, threat = (
        trained(5),
        trained(5, "linear"),
        ThreatModel({"linf": 0.1, "l2": 1.2, "l1": 10.0}[norm], norm),
    )
    batch = batch_of(model)
    attack = attacks.find("transfer:somebody").prepared(around(source, batch))
    assert attack.depends_on() == {"source": "print of somebody"}
    asked: list[bool] = []
    handle = model.register_forward_hook(lambda *_: asked.append(torch.is_grad_enabled()))
    found = attack(model, batch, threat)
    handle.remove()
    assert asked and not any(asked), "a black box gives no gradient"
    assert set(found.by) == {"transfer:somebody"}
    assert (threat.distance(found.images, batch.x) <= threat.eps + 1e-4).all()
    fooled = misclassified(model(found.images), batch.labels).float().mean()
    noise = misclassified(model(threat.random_start(batch.x, torch.arange(len(batch)))), batch.labels).float().mean()
    assert fooled > noise + 0.2
    with refused("transfer:x"):
        Transfer("x")(model, batch, threat)


def test_a_universal_perturbation_is_one_for_all_and_learned_elsewhere() -> None:
    model, threat = trained(5, "linear"), ThreatModel(0.08)
    x, labels = pictures(60, 5, seed=5)
    attack = attacks.find("universal").prepared(around(model, AttackBatch(x, labels, [str(i) for i in range(60)])))
    assert isinstance(attack, Universal) and set(attack.depends_on()) == {"learned on"}
    delta = attack.learn(model, threat, 0)
    assert delta.shape == (1, 3, SIDE, SIDE) and float(delta.abs().max()) <= 0.08 + 1e-6
    batch = batch_of(model, 40)
    found = attack(model, batch, threat)
    assert torch.equal(found.images, threat.project(batch.x + delta, batch.x))
    assert torch.equal(attack(model, batch.select(torch.tensor([3])), threat).images, found.images[3:4])
    fooled = misclassified(model(found.images), batch.labels).float().mean()
    noise = misclassified(model(threat.random_start(batch.x, torch.arange(len(batch)))), batch.labels).float().mean()
    assert fooled > noise + 0.1
    with refused("validation"):
        Universal()(model, batch, threat)


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("patch-25:top-left", (0, 3), (0, 3)),
        ("patch-25:bottom-right", (4, 7), (4, 7)),
        ("patch-25:center", (2, 5), (2, 5)),
    ],
)
def test_a_patch_changes_its_place_and_nothing_else(name: str, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    model = trained(5)
    batch = batch_of(model)
    found = attacks.find(name)(model, batch, ThreatModel(1e-3))
    changed = (found.images != batch.x).any(dim=1)
    where = changed.any(dim=0).nonzero()
    assert (int(where[:, 0].min()), int(where[:, 0].max())) == rows
    assert (int(where[:, 1].min()), int(where[:, 1].max())) == columns
    assert found.images.min() >= 0 and found.images.max() <= 1
    assert misclassified(model(found.images), batch.labels).float().mean() > 0.5
    assert set(found.by) == {name}


def test_a_random_place_follows_from_the_image_and_stays_inside() -> None:
    patch = Patch(10.0)
    places = set()
    for seed in range(40):
        mask = patch.mask(torch.Size((1, 3, 8, 10)), torch.Generator().manual_seed(seed))
        inside = mask.nonzero()
        assert len(inside) == math.isqrt(8) ** 2  # at most 10 % of 80 pixels
        places.add(tuple(inside[0].tolist()))
    assert len(places) > 10 and max(top for top, _ in places) == 6 and max(left for _, left in places) == 8
    model = trained(5)
    batch = batch_of(model, 10)
    whole = attacks.find("patch-10")(model, batch, ThreatModel(0.1))
    part = attacks.find("patch-10")(model, batch.select(torch.tensor([2, 5])), ThreatModel(0.1))
    torch.testing.assert_close(part.images, whole.images[[2, 5]])


@pytest.mark.parametrize("name", ["patch-0", "patch-101", "patch-5:middle"])
def test_patches_that_cannot_be_are_refused(name: str) -> None:
    with refused(name.partition(":")[0]):
        attacks.find(name)
    with refused("patch-0.1"):
        Patch(0.1).mask(torch.Size((1, 3, 8, 8)), torch.Generator())


class Dizzy(nn.Module):
    """Noise on the image whose gradient mostly misleads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(x + 0.3 * torch.randn_like(x))
        return z


def test_eot_averages_over_draws_and_leaves_the_generators_alone() -> None:
    dizzy, threat = Dizzy(trained(5)), ThreatModel(0.1)
    batch = batch_of(dizzy.model)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = attacks.find("eot-10")(dizzy, batch, threat)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(attacks.find("eot-10")(dizzy, batch, threat).images, found.images)
    assert ((found.images - batch.x).abs() <= 0.1 + 1e-6).all()
    judge = Averaged(dizzy, 200)
    torch.manual_seed(0)
    assert (
        misclassified(judge(found.images), batch.labels).float().mean()
        > misclassified(judge(batch.x), batch.labels).float().mean() + 0.4
    )
    torch.manual_seed(0)
    drawn = torch.stack([dizzy(batch.x[:2]).log_softmax(dim=-1) for _ in range(3)]).mean(dim=0)
    torch.manual_seed(0)
    torch.testing.assert_close(Averaged(dizzy, 3)(batch.x[:2]), drawn)
    with refused("eot-N"):
        attacks.find("eot-0")


class Rounded(nn.Module):
    """A step whose gradient is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 20).round() / 20


class Cut(nn.Module):
    """Code outside any module cuts the graph."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(((x.detach() * 20).round() / 20).clamp(0, 1))
        return z


@pytest.mark.parametrize("kind", ["module", "code", "detached module"])
def test_bpda_leads_gradients_past_what_blocks_them(kind: str) -> None:
    net, threat = trained(5), ThreatModel(0.1)
    step: nn.Module = Rounded() if kind == "module" else BPDA(lambda x: x)
    if kind == "detached module":
        step.forward = lambda x: (x.detach() * 20).round() / 20  # type: ignore[method-assign]
    model = Cut(net) if kind == "code" else nn.Sequential(step, net)
    batch = batch_of(model)
    plain = model(batch.x)
    with bridged(model, batch.x) as found:
        x = batch.x.clone().requires_grad_()
        bridge = model(x)
        (gradient,) = torch.autograd.grad(bridge.sum(), x)
    assert torch.equal(bridge, plain) and len(found) == 1
    assert gradient.flatten(1).any(dim=1).all()
    images = attacks.find("bpda")(model, batch, threat).images
    assert misclassified(model(images), batch.labels).float().mean() > 0.5
    assert ((images - batch.x).abs() <= 0.1 + 1e-6).all()
    assert torch.equal(model(batch.x), plain), "hooks are gone"


def test_a_cut_that_cannot_be_bridged_is_told() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 3 * SIDE * SIDE), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1) @ self.weight.T

    with refused("bpda", "apd.attacks.BPDA"):
        attacks.find("bpda")(Inside(), batch_of(trained(5)), ThreatModel(0.1))


def test_nothing_is_bridged_where_nothing_blocks() -> None:
    model = nn.Sequential(nn.LayerNorm(SIDE), trained(5), nn.Softmax(dim=-1))
    with bridged(model, batch_of(trained(5)).x) as found:
        assert found == []


def test_preprocessing_is_attacked_through() -> None:
    net, threat = trained(5), ThreatModel(0.1)
    for transform in (lambda x: x.detach().round(decimals=1), lambda x: x.flip(-1).flip(-1) * 0.9 + 0.05):
        model = Preprocessed(net, transform)
        batch = batch_of(model)
        assert torch.equal(model(batch.x), net(transform(batch.x)))
        images = attacks.find("pgd-20")(model, batch, threat).images
        assert misclassified(model(images), batch.labels).float().mean() > 0.5
    blurred = Preprocessed(net, lambda x: nn.functional.avg_pool2d(x, 3, 1, 1))
    with torch.inference_mode():
        blurred(batch.x)
    again = Preprocessed(net, blurred.transform)
    for model in (blurred, again):
        leaf = batch.x.clone().requires_grad_()
        model(leaf).sum().backward()
        model.gradient = leaf.grad
    assert torch.equal(blurred.gradient, again.gradient), "looked at in inference mode, it keeps its own gradient"
    x = torch.rand(1, 3, 2, 2, requires_grad=True)
    out = BPDA(torch.round, lambda x: 3 * x)(x)
    assert torch.equal(out, x.round())
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == torch.full((1, 3, 2, 2), 3.0).tolist()
    with refused("BPDA"):
        BPDA(lambda x: x[..., :1])(x)


def toy_data() -> apd.Dataset:
    x, labels = pictures(60, 3)
    return apd.Dataset.from_tensors(
        "toy", NAMES[:3], train=(x[:20], labels[:20]), val=(x[20:40], labels[20:40]), test=(x[40:], labels[40:])
    )


def test_attacks_by_name_in_an_evaluation() -> None:
    """Transfer from zero-shot CLIP and a universal perturbation get what they need; a patch is not limited by eps."""
    data, clip = toy_data(), toy_clip(3)
    classifier = apd.PromptedCLIP(clip, None, data.class_names, data.templates)
    names = ("transfer:zero-shot", "universal", "patch-30", "targeted:b")
    result = apd.evaluate(classifier, data, attacks=names, eps=0.05, limit="all", checks=False, quiet=True)
    assert set(result.attacks) == set(names)
    assert result.attacks["transfer:zero-shot"].accuracy < result.clean
    turned = [
        guess for guess, label in zip(result.predictions["targeted:b"], result.labels, strict=True) if guess != label
    ]
    clean_wrong = [
        guess for guess, label in zip(result.predictions["clean"], result.labels, strict=True) if guess != label
    ]
    assert turned.count(1) >= len(turned) - len(clean_wrong)
    still = apd.evaluate(classifier, data, attacks=("patch-30", "pgd-5"), eps=0, limit="all", checks=False, quiet=True)
    assert still.attacks["pgd-5"].accuracy == still.clean > still.attacks["patch-30"].accuracy


def test_surroundings_load_other_classifiers_and_resize(monkeypatch: pytest.MonkeyPatch) -> None:
    data, clip = toy_data(), toy_clip(3)
    classifier = apd.PromptedCLIP(clip, None, data.class_names, data.templates)
    plain = Preprocessing.plain(SIDE)
    made = surroundings_of(
        classifier.zero_shot(), data, lambda some: some.decode(plain), torch.device("cpu"), SIDE, EvaluationSettings()
    )
    source = made.classifier("zero-shot")
    x = data.test.decode(plain).images[:4] / 255
    torch.testing.assert_close(source.model(x), classifier.zero_shot()(x))
    assert len(made.validation()) == 20 and made.validation() is made.validation()
    other = surroundings_of(
        None, data, lambda some: some.decode(plain), torch.device("cpu"), SIDE, EvaluationSettings()
    )
    with refused("transfer:zero-shot"):
        other.classifier("zero-shot")
    assert made.has_zero_shot and not other.has_zero_shot
    own = apd.PromptedCLIP(clip, None, data.class_names, ("my own words for {}",))
    monkeypatch.setattr(surroundings, "is_run", lambda spec: spec == "sibling")
    monkeypatch.setattr(surroundings, "load_run", lambda spec, device: own)
    assert made.classifier("sibling").fingerprint == Subject.of(own).fingerprint, "a run's words are part of it"
    on_val = EvaluationSettings(split="val")
    learned = surroundings_of(None, data, lambda some: some.decode(plain), torch.device("cpu"), SIDE, on_val)
    assert {*learned.validation().ids}.isdisjoint(made.validation().ids)
    strong = attacks.find("strong").prepared(made)
    assert strong.runs(3)[-1] == "transfer:zero-shot" and "source" in strong.depends_on()
    assert Resized(source.model, SIDE)(torch.rand(2, 3, 16, 16)).shape == (2, 3)


def test_a_distance_in_another_norm_is_refused() -> None:
    """Within Linf an L2 distance is far beyond eps, so that everything seemed robust."""
    x, labels = pictures(4, 3)
    batch = AttackBatch(x, labels, [str(i) for i in range(4)])
    with refused("cw", "l2", "linf"):
        CarliniWagner()(trained(3), batch, ThreatModel(0.1))


@pytest.mark.parametrize("first", [0, 3])
def test_a_step_that_is_flat_at_one_image_is_not_taken_for_a_cut(first: int) -> None:
    """A square has no slope at black: with a black image first, attacks went straight past it."""
    x, _ = pictures(4, 3)
    x = x.clamp_min(0.1)
    x[first] = 0
    squared, rounded = (Preprocessed(trained(3), step) for step in (torch.square, lambda z: (z * 8).round() / 8))
    for defended in (squared, rounded):
        defended(x)
    assert (squared._blocked, rounded._blocked) == (False, True)


@pytest.mark.parametrize(("percent", "size", "side"), [(9, 240, 72), (36, 240, 144), (9, 30, 9), (5, 32, 7)])
def test_a_patch_is_as_large_as_its_share_allows(percent: int, size: int, side: int) -> None:
    mask = Patch(percent, "center").mask(torch.Size((3, size, size)), torch.Generator().manual_seed(0))
    assert mask.sum() == side * side


def test_a_step_that_refuses_other_values_is_judged_by_the_image_alone() -> None:
    def dark_only(z: Tensor) -> Tensor:
        if z.max() > 0.5:
            raise ValueError("too bright")
        return (z * 8).round() / 8

    defended = Preprocessed(trained(3), dark_only)
    defended(0.4 * pictures(2, 3)[0])
    assert defended._blocked is True
