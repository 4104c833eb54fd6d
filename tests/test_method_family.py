"""The family of methods: losses and prompt gradients against slow references, what each one trains, runs that load back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from apd.attacks import PGD
from apd.attacks.threat import ThreatModel
from apd.data.batch import Batch
from apd.data.dataset import UNKNOWN, Decoded
from apd.methods import METHODS, Method, Preparation, find_method
from apd.models import DualEncoder, load_clip
from apd.models.classifier import PromptedCLIP
from apd.training.step import TrainStep

CLASSES = ["cat", "dog", "grand piano"]
LABELS = torch.tensor([0, 2, 1, 1])
SIDE = 16
THREAT = ThreatModel(6 / 255)


# --- the slow way: one image and one class at a time, text at full length, nothing shared, nothing cached


@dataclass
class Slow:
    """A prompted CLIP from its parameters alone; without prompts the CLIP as it was."""

    encoder: DualEncoder
    prompts: Any = None

    def tokens(self) -> tuple[list[Tensor], list[Tensor]]:
        if self.prompts is None:
            return [], []
        text, visual = list(self.prompts.text_tokens), list(self.prompts.visual_tokens)
        if self.prompts.spec.coupling == "text-to-vision":
            mapped = [text[d] @ self.prompts.maps[d].weight.T + self.prompts.maps[d].bias for d in range(3)]
            visual = mapped + visual
        if self.prompts.spec.coupling == "vision-to-text":
            text = [visual[d] @ self.prompts.maps[d].weight.T + self.prompts.maps[d].bias for d in range(3)]
        return text, visual

    def classes(self) -> Tensor:
        text, _ = self.tokens()
        rows = []
        for c, name in enumerate(CLASSES):
            own = [t[c] if t.dim() == 3 else t for t in text]
            n = len(own[0]) if own else 0
            ids = self.encoder.prompt_ids([f"{name}." if n else f"a photo of a {name}."], n)
            feature = self.encoder.encode_text(ids, own)[0]
            rows.append(feature / feature.norm())
        return torch.stack(rows)

    def embed(self, x: Tensor) -> Tensor:
        _, visual = self.tokens()
        canvas = torch.zeros(3, SIDE, SIDE, dtype=x.dtype)
        if self.prompts is not None and hasattr(self.prompts, "strips"):
            top, bottom, left, right = self.prompts.strips
            w = top.shape[1]
            canvas[:, :w], canvas[:, SIDE - w :] = top, bottom
            canvas[:, w : SIDE - w, :w], canvas[:, w : SIDE - w, SIDE - w :] = left, right
        return torch.stack([self.encoder.encode_image((image + canvas)[None], visual)[0] for image in x])

    def logits(self, x: Tensor) -> Tensor:
        features = self.embed(x)
        return self.encoder.info.logit_scale * (features / features.norm(dim=1, keepdim=True)) @ self.classes().T


def ce(z: Tensor) -> Tensor:
    return torch.stack([-(row.exp() / row.exp().sum())[y].log() for row, y in zip(z, LABELS.tolist(), strict=True)])


def kl(z_p: Tensor, z_q: Tensor) -> Tensor:
    rows = [(p.exp() / p.exp().sum(), q.exp() / q.exp().sum()) for p, q in zip(z_p, z_q, strict=True)]
    return torch.stack([sum(a * (a / b).log() for a, b in zip(p, q, strict=True)) for p, q in rows])


def squares(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([sum((u - v) ** 2 for u, v in zip(p, q, strict=True)) for p, q in zip(a, b, strict=True)])


Formula = Callable[[Slow, Slow, Tensor, Tensor], Tensor]


def inner_ce(m: Slow, o: Slow, x: Tensor, a: Tensor) -> Tensor:
    return ce(m.logits(a))


def adversarial(m: Slow, o: Slow, x: Tensor, a: Tensor) -> Tensor:
    return ce(m.logits(a))


def clean(m: Slow, o: Slow, x: Tensor, a: Tensor) -> Tensor:
    return ce(m.logits(x))


def half(m: Slow, o: Slow, x: Tensor, a: Tensor) -> Tensor:
    return 0.5 * ce(m.logits(a)) + 0.5 * ce(m.logits(x))


def inner_kl(m: Slow, o: Slow, x: Tensor, a: Tensor) -> Tensor:
    return kl(m.logits(x).detach(), m.logits(a))


def trades(m: Slow, o: Slow, x: Tensor, a: Tensor) -> Tensor:
    return ce(m.logits(x)) + 4 * kl(m.logits(x), m.logits(a))


def pmg(m: Slow, o: Slow, x: Tensor, a: Tensor) -> Tensor:
    return ce(m.logits(a)) + 0.7 * kl(m.logits(a), o.logits(a).detach()) + 1.3 * kl(m.logits(a), m.logits(x))


def pmg_second(m: Slow, o: Slow, x: Tensor, a: Tensor) -> Tensor:
    return ce(m.logits(a)) + 0.7 * kl(o.logits(a).detach(), m.logits(a)) + 1.3 * kl(m.logits(x), m.logits(a))


def fare(m: Slow, o: Slow, x: Tensor, a: Tensor) -> Tensor:
    return squares(m.embed(a), o.embed(x).detach())


def agft(m: Slow, o: Slow, x: Tensor, a: Tensor) -> Tensor:
    scale = m.encoder.info.logit_scale
    return kl((72 / scale) * o.logits(x).detach(), (180 / scale) * m.logits(a))


def coapt(m: Slow, o: Slow, x: Tensor, a: Tensor) -> Tensor:
    unit = [f / f.norm(dim=1, keepdim=True) for f in (m.embed(a), o.embed(x).detach())]
    text = squares(m.classes(), o.classes().detach()).sum() / len(CLASSES)
    anchor = 8 * (2 - torch.exp(-0.5 * (squares(*unit) + text)))
    pairs = [(p.exp() / p.exp().sum(), q.exp() / q.exp().sum()) for p, q in zip(m.logits(x), m.logits(a), strict=True)]
    renyi = [sum(p**2.5 / q**1.5 for p, q in zip(*pair, strict=True)).log() / 1.5 for pair in pairs]
    return anchor + torch.stack(renyi) + ce(m.logits(a))


BOTH, TEXT, VISUAL = (
    {"text_tokens": 2, "visual_tokens": 3, "text_depth": 2, "visual_depth": 3},
    {"text_tokens": 2},
    {"visual_tokens": 3, "visual_depth": 2},
)
COUPLED = {"text_tokens": 2, "visual_tokens": 2}
SPECIFIC = {"text_tokens": 2, "class_specific": True}

# name, its settings, its prompts, inner maximisation (None: no attack), loss a sample
CASES: list[tuple[str, dict[str, Any], dict[str, Any], Formula | None, Formula]] = [
    ("coop", {}, TEXT, None, clean),
    ("coop", {}, SPECIFIC, None, clean),
    ("vpt", {}, VISUAL, None, clean),
    ("vlp", {}, BOTH, None, clean),
    ("maple", {}, COUPLED, None, clean),
    ("apt", {}, TEXT, inner_ce, adversarial),
    ("apt", {}, {**SPECIFIC, "text_depth": "all"}, inner_ce, adversarial),
    ("advvp", {}, VISUAL, inner_ce, adversarial),
    ("advvp-pixels", {}, {"frame": 0.2}, inner_ce, adversarial),
    ("advvp-pixels", {}, {"visual_tokens": 2}, inner_ce, adversarial),
    ("advvlp", {}, BOTH, inner_ce, adversarial),
    ("advvlp", {"clean": 0.5}, BOTH, inner_ce, half),
    ("advmaple", {}, COUPLED, inner_ce, adversarial),
    ("trades", {"beta": 4.0}, BOTH, inner_kl, trades),
    ("pmg", {"alpha": 0.7, "beta": 1.3}, BOTH, inner_ce, pmg),
    ("pmg", {"alpha": 0.7, "beta": 1.3, "kl": "adversarial-second"}, BOTH, inner_ce, pmg_second),
    ("fare", {}, VISUAL, fare, fare),
    ("agft", {}, BOTH, agft, agft),
    ("coapt", {"beta": 0.5}, COUPLED, inner_ce, coapt),
]


def build(clip: DualEncoder, name: str, settings: dict[str, Any], prompts: dict[str, Any]) -> Method:
    """A method in float64 with every prompt moved off its start, so that no gradient is 0 by accident."""
    cls = find_method(name)
    encoder = load_clip(clip.info.source, dtype=torch.float64)
    made = cls.Settings.model_validate({**settings, "prompts": prompts})
    method = cls(made, PromptedCLIP(encoder, None, CLASSES), seed=1).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.student.prompts.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return method


def gradients(method: Method, loss: Tensor) -> dict[str, Tensor]:
    method.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def images() -> Tensor:
    return torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("name", "settings", "prompts", "inner", "outer"), CASES)
def test_a_step_s_loss_and_gradients_are_the_formula_s(
    clip: DualEncoder,
    name: str,
    settings: dict[str, Any],
    prompts: dict[str, Any],
    inner: Formula | None,
    outer: Formula,
) -> None:
    method, x, seeds = build(clip, name, settings, prompts), images(), torch.arange(4)
    batch = Batch.of(x, LABELS)
    terms = TrainStep(method, attack=PGD(steps=2, step_size=0.5))(batch, THREAT)[0]
    total = torch.stack(list(terms.values())).sum()
    got = gradients(method, total)

    encoder = method.student.encoder
    slow, original = Slow(encoder, method.student.prompts), Slow(encoder)
    x_adv = THREAT.random_start(x, seeds) if inner else x
    for _ in range(2 if inner else 0):
        assert inner is not None
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(inner(slow, original, x, x_adv).sum(), x_adv)
        moved = x_adv.detach() + THREAT.eps / 2 * gradient.sign() - x
        x_adv = (x + moved.clamp(-THREAT.eps, THREAT.eps)).clamp(0, 1)
    wanted = outer(slow, original, x, x_adv).mean()
    torch.testing.assert_close(total, wanted, rtol=1e-6, atol=1e-9)
    expected = gradients(method, wanted)
    assert (
        got.keys() == expected.keys() == {f"student.prompts.{n}" for n, _ in method.student.prompts.named_parameters()}
    )
    for parameter, gradient in expected.items():
        assert gradient.abs().sum() > 0, parameter
        torch.testing.assert_close(got[parameter], gradient, rtol=1e-5, atol=1e-9)


def test_the_order_of_pmg_s_divergences_is_recorded_where_it_is_another_than_before() -> None:
    settings = find_method("pmg").Settings
    assert "kl" not in settings().model_dump()
    assert settings.model_validate({"kl": "adversarial-second"}).model_dump()["kl"] == "adversarial-second"


def test_promptkd_follows_tuned_prompts_on_images_without_labels(clip: DualEncoder) -> None:
    method, x, tuned = build(clip, "promptkd", {"tau": 2.0}, BOTH), images(), []

    def tune(other: Method) -> None:
        assert not other.adversarial and other.student.encoder is method.student.encoder
        tuned.append(other.student.prompts)
        with torch.no_grad():
            for parameter in other.student.prompts.parameters():
                parameter.add_(0.1)

    method.prepare(Preparation(LABELS, None, None, 0, tune, None))  # type: ignore[arg-type]
    unknown = replace(Batch.of(x, torch.full_like(LABELS, UNKNOWN)), labelled=torch.zeros(4, dtype=torch.bool))
    terms, seen = TrainStep(method)(unknown, THREAT)
    teacher, student = (Slow(method.student.encoder, prompts) for prompts in (tuned[0], method.student.prompts))
    wanted = 4 * kl(teacher.logits(x).detach() / 2, student.logits(x) / 2).mean()
    assert torch.equal(seen, x) and terms.keys() == {"clean_kl"}
    got, expected = gradients(method, terms["clean_kl"]), gradients(method, wanted)
    assert got.keys() == expected.keys() and len(got) == len(list(method.student.prompts.parameters()))
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("inner", ["features", "ce"])
def test_advpt_learns_from_a_bank_of_the_plain_clip(clip: DualEncoder, inner: str) -> None:
    method = build(clip, "advpt", {"inner": inner}, TEXT)
    bytes_ = (images() * 255).round().to(torch.uint8)
    decoded = Decoded(bytes_, LABELS, tuple("abcd"))

    def attack(objective: Any, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        """One step in float64 from the corner of the ball, written out; the seeds must differ from image to image."""
        assert len(set(seeds.tolist())) == 4
        start = (x.double() + threat.eps / 3).clamp(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(objective(start).sum(), start)
        return (start + threat.eps / 3 * gradient.sign()).detach().clamp(0, 1)

    method.original.encoder.double()
    method.prepare(Preparation(Doubled(decoded), attack, THREAT, 0, lambda other: None, decoded))

    original = Slow(method.student.encoder)
    x = bytes_.double() / 255
    start = (x + THREAT.eps / 3).clamp(0, 1).requires_grad_()
    value = kl(original.embed(x).detach(), original.embed(start)) if inner == "features" else ce(original.logits(start))
    (gradient,) = torch.autograd.grad(value.sum(), start)
    features = original.embed((start + THREAT.eps / 3 * gradient.sign()).detach().clamp(0, 1))
    bank = features / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(method.bank, bank, rtol=1e-6, atol=1e-8)

    index = torch.tensor([2, 0, 3, 1])
    batch = replace(Batch.of(torch.full_like(x, torch.nan), LABELS[index]), index=index)
    terms = TrainStep(method, attack=PGD())(batch, THREAT)[0]
    got = gradients(method, terms["adv_ce"])
    z = (
        method.student.encoder.info.logit_scale
        * bank
        @ Slow(method.student.encoder, method.student.prompts).classes().T
    )
    expected = gradients(method, ce(z).mean())
    assert got.keys() == expected.keys() == {"student.prompts.text_tokens.0"}
    torch.testing.assert_close(got["student.prompts.text_tokens.0"], expected["student.prompts.text_tokens.0"])


class Doubled(Decoded):
    """The same images as float64 pixels."""

    def __init__(self, decoded: Decoded) -> None:
        super().__init__(decoded.images, decoded.labels, decoded.ids)

    def pixels(self, index: Any = slice(None)) -> Tensor:
        return self.images[index].double() / 255


TRAINED = {
    "apd": {"text_tokens", "visual_tokens"},
    "advvlp": {"text_tokens", "visual_tokens"},
    "advmaple": {"text_tokens", "maps", "visual_tokens"},
    "advvp": {"visual_tokens"},
    "advvp-pixels": {"strips"},
    "apt": {"text_tokens"},
    "advpt": {"text_tokens"},
    "fap": {"visual_tokens", "maps"},
    "trades": {"text_tokens", "visual_tokens"},
    "pmg": {"text_tokens", "visual_tokens"},
    "fare": {"visual_tokens"},
    "coapt": {"visual_tokens", "maps"},
    "agft": {"text_tokens", "visual_tokens"},
    "promptkd": {"text_tokens", "visual_tokens"},
    "vlp": {"text_tokens", "visual_tokens"},
    "maple": {"text_tokens", "maps", "visual_tokens"},
    "coop": {"text_tokens"},
    "vpt": {"visual_tokens"},
    "zero-shot": set(),
}


@pytest.mark.parametrize("name", METHODS)
def test_what_is_trainable_is_what_the_paper_trains(clip: DualEncoder, name: str) -> None:
    cls = find_method(name)
    method = cls(cls.Settings(), PromptedCLIP(clip, None, CLASSES))
    names = {n for n, p in method.named_parameters() if p.requires_grad}
    assert {n.split(".")[2] for n in names} == TRAINED[name]
    assert all(n.startswith("student.prompts.") for n in names)
    assert bool(names) == method.learns


# Image passes of a step with two attack steps: the attack's, the loss's, a clean one, the original CLIP's.
PASSES = {
    **dict.fromkeys(("advvlp", "advmaple", "advvp", "advvp-pixels", "apt"), 3),
    **dict.fromkeys(("vlp", "maple", "coop", "vpt"), 1),
    "fap": 4,
    "trades": 4,
    "pmg": 5,
    "fare": 4,
    "coapt": 5,
    "agft": 4,
    "promptkd": 2,
}


@pytest.mark.parametrize("name", PASSES)
def test_a_step_runs_no_tower_twice_for_the_same(clip: DualEncoder, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = find_method(name)
    method = cls(cls.Settings(), PromptedCLIP(clip, None, CLASSES))
    step, kind = TrainStep(method, attack=PGD(steps=2)), type(clip)
    x = torch.rand(4, 3, SIDE, SIDE)
    step(Batch.of(x, LABELS), THREAT)
    counts = {"encode_text": 0, "encode_image": 0}
    for tower in counts:
        original = getattr(kind, tower)

        def counted(*arguments: Any, tower: str = tower, original: Any = original) -> Tensor:
            counts[tower] += 1
            return original(*arguments)

        monkeypatch.setattr(kind, tower, counted)
    step(Batch.of(x, LABELS), THREAT)
    assert counts == {"encode_text": int(bool(method.student.prompts.text())), "encode_image": PASSES[name]}


def test_coupled_visual_tokens_are_the_text_s_alone_where_both_towers_have_them(clip: DualEncoder) -> None:
    """The towers here have 3 and 4 blocks: the fourth's visual tokens have no text tokens to come from."""
    spec = {"text_depth": 3, "visual_depth": 3}
    method = build(clip, "maple", {}, {**COUPLED, **spec})
    assert {n.split(".")[0] for n, _ in method.student.prompts.named_parameters()} == {"text_tokens", "maps"}
