"""Evaluation attacks by name: what they run, whom they fool, and what one part of a cascade leaves to the next."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apd import attacks
from apd.attacks import AttackBatch, Cascade, misclassified
from apd.attacks.threat import Norm, ThreatModel

from .refusals import meant, refused
from .test_attacks import BALLS, standing_pictures
from .toys import Counting, trained


@pytest.mark.parametrize("threat", BALLS, ids=lambda ball: ball.norm)
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("name", ["pgd-10", "apgd-ce", "apgd-dlr"])
def test_evaluation_attacks_raise_the_error_within_the_ball(name: str, kind: str, threat: ThreatModel) -> None:
    model = trained(5, kind)
    x, labels = standing_pictures(model, 40, 5)
    found = attacks.find(name)(model, AttackBatch(x, labels, [str(i) for i in range(len(x))]), threat)
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
def test_autoattack_with_few_classes(
    n_classes: int, runs: tuple[str, ...], capfd: pytest.CaptureFixture[str], few_queries: None
) -> None:
    """At an eps that leaves some standing, so that every stage runs; it fools whom each part alone fools."""
    model, threat = trained(n_classes), ThreatModel(0.04)
    x, labels = standing_pictures(model, 24, n_classes)
    ids = [str(i) for i in range(len(x))]
    attack = attacks.find("autoattack")
    assert attack.runs(n_classes) == runs
    torch.manual_seed(5)
    expected, tracer = torch.rand(3), sys.gettrace()
    torch.manual_seed(5)
    found = attack(model, AttackBatch(x, labels, ids), threat)
    assert torch.equal(torch.rand(3), expected), "the global generator was touched"
    assert sys.gettrace() is tracer
    fooled = misclassified(model(found.images), labels)
    assert 0 < fooled.sum() < len(x)
    assert {by for by, wrong in zip(found.by, fooled.tolist(), strict=True) if not wrong} == {"square"}
    for part in ("pgd-20", "apgd-ce", "apgd-dlr"):
        alone = attacks.find(part)(model, AttackBatch(x, labels, ids), threat)
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
    found = attacks.find(name)(model, AttackBatch(x[:n], labels[:n], ["a", "b"][:n]), ThreatModel(0.3))
    assert found.images.shape == x[:n].shape and misclassified(model(found.images), labels[:n]).all()


def test_apgd_runs_once_and_margin_replaces_dlr_for_two_classes() -> None:
    x, labels = standing_pictures(trained(2), 8, 2)
    for name, runs in [("apgd-ce", ("apgd-ce",)), ("apgd-dlr", ("apgd-margin",))]:
        model = Counting(trained(2))
        attack = attacks.find(name)
        attack(model, AttackBatch(x, labels, [str(i) for i in range(len(x))]), ThreatModel(1e-4))
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
    found = attacks.find("autoattack")(defence(model), AttackBatch(x, labels, ids), ThreatModel(0.5))
    assert found.flags[flag] == 1 and not caplog.records
    assert not attacks.find("autoattack")(model, AttackBatch(x, labels, ids), ThreatModel(0.5)).flags


class Listening(attacks.Watch):
    """Remembers which parts began."""

    def __init__(self, done: Sequence[str] = ()) -> None:
        super().__init__(done)
        self.told: list[str] = []

    def begin(self, part: str) -> None:
        self.told.append(part)


@pytest.mark.parametrize(
    ("name", "n_classes", "norm"),
    [
        ("pgd-7", 5, "l2"),
        ("apgd-ce", 5, "l2"),
        ("apgd-dlr", 2, "linf"),
        ("apgd-ce+dlr", 5, "linf"),
        ("fab", 2, "linf"),
        ("autoattack", 12, "linf"),
        ("fmn", 5, "l2"),
        ("cw", 5, "l2"),
        ("targeted", 5, "linf"),
        ("targeted:1", 5, "linf"),
    ],
)
def test_passes_are_counted_right_where_nothing_falls(name: str, n_classes: int, norm: Norm) -> None:
    """Twelve classes have more wrong ones than the library has targets; of what only two classes run, each part is here."""
    model, watch, passes = trained(n_classes, "linear"), Listening(), 0
    x, labels = standing_pictures(model, 2, n_classes)

    def count(_: nn.Module, inputs: tuple[Tensor, ...], __: object) -> None:
        nonlocal passes
        passes += 2 if inputs[0].requires_grad and torch.is_grad_enabled() else 1

    model.register_forward_hook(count)
    attack = attacks.find(name)
    found = attack(model, AttackBatch(x, labels, ["a", "b"]), ThreatModel(1e-6, norm), watch)
    passes_of_attack = passes
    assert not misclassified(model(found.images), labels).any()
    assert passes_of_attack == sum(attack.part_passes(n_classes))
    assert tuple(watch.told) == attack.runs(n_classes)


@dataclass(frozen=True)
class Fools(attacks.EvaluationAttack):
    """Blackens the images of one class, and remembers what it was given."""

    label: int
    asked: list[str]
    source: str = ""
    name: str = "fools"

    def depends_on(self) -> dict[str, str]:
        return {"source": self.source}

    def runs(self, n_classes: int) -> tuple[str, ...]:
        return (f"fools-{self.label}",)

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        return (self.label,)

    def __call__(
        self, model: nn.Module, batch: AttackBatch, threat: ThreatModel, watch: attacks.Watch = attacks.UNWATCHED
    ) -> attacks.Found:
        watch.begin(f"fools-{self.label}")
        self.asked.extend(batch.ids)
        images = torch.where((batch.labels == self.label).view(-1, 1, 1, 1), torch.zeros_like(batch.x), batch.x)
        return attacks.Found(images, [f"fools-{self.label}"] * len(batch))


def test_a_cascade_hands_on_what_stands() -> None:
    class Brightness(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.one_hot((x.flatten(1).mean(dim=1) * 10).round().long(), 4).float()

    labels = torch.tensor([1, 2, 3, 2])
    x = (labels / 10).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone()
    ids, asked = ["a", "b", "c", "d"], [list[str](), list[str](), list[str]()]
    cascade = Cascade("all", tuple(Fools(label, ids_) for label, ids_ in zip((2, 1, 3), asked, strict=True)))
    watch = Listening()
    found = cascade(Brightness(), AttackBatch(x, labels, ids), ThreatModel(0.5), watch)
    assert watch.told == ["fools-2", "fools-1", "fools-3"]
    assert cascade.part_passes(4) == (2 + 1, 1 + 1, 3 + 1)
    assert asked == [["a", "b", "c", "d"], ["a", "c"], ["c"]]
    assert found.by == ["fools-1", "fools-2", "fools-3", "fools-2"]
    assert not found.images.any()
    assert cascade.runs(4) == ("fools-2", "fools-1", "fools-3")


def test_a_cascade_is_resumed_at_its_second_part_of_one_name() -> None:
    asked = [list[str](), list[str](), list[str]()]
    parts = tuple(Fools(label, ids_, value) for label, ids_, value in zip((2, 1, 3), asked, "xyz", strict=True))
    cascade = Cascade("all", parts)

    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.one_hot(torch.ones(len(x), dtype=torch.int64), 4).float()

    batch = AttackBatch(torch.zeros(1, 3, 2, 2), torch.tensor([1]), ["a"])
    cascade(Blind(), batch, ThreatModel(0.5), Listening(["fools"]))
    assert asked == [[], ["a"], ["a"]]
    assert sorted(cascade.depends_on().values()) == ["x", "y", "z"] and "source" in cascade.depends_on()


def test_apgd_finds_what_its_parts_find() -> None:
    model = trained(5)
    x, labels = standing_pictures(model, 40, 5)
    ids, threat = [str(i) for i in range(len(x))], ThreatModel(0.04)
    stand = torch.ones(len(x), dtype=torch.bool)
    for part in ("pgd-10", "apgd-ce", "apgd-dlr"):
        stand &= ~misclassified(model(attacks.find(part)(model, AttackBatch(x, labels, ids), threat).images), labels)
    found = attacks.find("apgd-ce+dlr")(model, AttackBatch(x, labels, ids), threat)
    assert 0 < int(stand.sum()) < len(x)
    # The library draws for a whole batch, so a sample at the border may fall in one batch and not in another.
    assert int((~misclassified(model(found.images), labels) ^ stand).sum()) <= 1
    assert torch.equal(threat.project(found.images, x), found.images)


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("apgd-cc", meant("apgd-ce")),
        ("autoatack", meant("autoattack")),
        ("pgd", meant("pgd-20")),
        ("pgd-0", "pgd-1"),
        ("zzz", "apgd-ce+dlr"),
    ],
)
def test_unknown_attacks_offer_the_nearest(name: str, way_out: str) -> None:
    with refused(name, way_out):
        attacks.find(name)


def test_the_table_names_what_find_finds() -> None:
    for name in attacks.EVALUATION:
        if name != "clean":
            example = name.replace("N", "3").replace("-P", "-5")
            assert attacks.find(example).name == example


@pytest.mark.parametrize(
    ("name", "meant"), [("pdg-10", "pgd-10"), ("pgd20", "pgd-20"), ("eto-7", "eot-7"), ("autoatack", "autoattack")]
)
def test_the_attack_that_is_meant_keeps_its_number(name: str, meant: str) -> None:
    with refused(f"Did you mean {meant}?"):
        attacks.find(name)
