"""Losses and methods against slow references written sample by sample from their formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apd import losses
from apd.attacks import PGD, AttackSettings, cosine_distance, cross_entropy, kl
from apd.attacks.threat import ThreatModel
from apd.data import Decoded
from apd.data.batch import Batch
from apd.methods import METHODS, Preparation, Step, find_method
from apd.methods.apd import APD, APDSettings
from apd.models import DualEncoder, load_clip
from apd.models.classifier import PromptedCLIP
from apd.models.prompts import PromptSpec
from apd.settings.train import TrainSettings
from apd.training.step import TrainStep

from .refusals import meant, refused

CLASSES = ["cat", "dog", "grand piano"]
LABELS = torch.tensor([0, 2, 1, 1])
SPEC = PromptSpec(text_tokens=2, visual_tokens=2)


def pixels(seed: int) -> Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


X, X_ADV = pixels(0), (pixels(0) + 0.8 * (pixels(1) - 0.5)).clamp(0, 1)


def slow_softmax(row: list[float], tau: float) -> list[float]:
    exps = [math.exp(v / tau) for v in row]
    return [e / sum(exps) for e in exps]


def slow_ce(z: Tensor, labels: Tensor) -> float:
    rows = [-math.log(slow_softmax(row, 1.0)[y]) for row, y in zip(z.tolist(), labels.tolist(), strict=True)]
    return sum(rows) / len(rows)


def slow_kl_rows(target: Tensor, z: Tensor, tau: float) -> list[float]:
    out = []
    for t_row, z_row in zip(target.tolist(), z.tolist(), strict=True):
        p, q = slow_softmax(t_row, tau), slow_softmax(z_row, tau)
        out.append(tau**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return out


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def slow_cosine_distance(a: Tensor, b: Tensor) -> float:
    return mean([1 - float(u @ v / (u.norm() * v.norm())) for u, v in zip(a, b, strict=True)])


def slow_squares(a: Tensor, b: Tensor) -> list[float]:
    rows = zip(a.tolist(), b.tolist(), strict=True)
    return [sum((u - v) ** 2 for u, v in zip(p, q, strict=True)) for p, q in rows]


def test_losses_agree_with_the_formulas() -> None:
    z, target = torch.randn(4, 3), 2 * torch.randn(4, 3)
    assert cross_entropy(z, LABELS).mean().item() == pytest.approx(slow_ce(z, LABELS), rel=1e-5)
    rows = slow_kl_rows(target, z, 2.0)
    assert kl(p=target, q=z, tau=2.0).tolist() == pytest.approx(rows, rel=1e-5)
    assert losses.kl_per_sample(target, z, 2.0).tolist() == pytest.approx(rows, rel=1e-5)
    a, b = torch.randn(4, 5), torch.randn(4, 5)
    assert cosine_distance(a, b).mean().item() == pytest.approx(slow_cosine_distance(a, b), rel=1e-5)


def build(clip: DualEncoder, name: str = "apd", **settings: object) -> object:
    cls = find_method(name)
    return cls(cls.Settings(prompts=SPEC, **settings), PromptedCLIP(clip, None, CLASSES), seed=0)


def terms(method: object) -> dict[str, float]:
    step = Step(Batch.of(X, LABELS), method.student.bind())
    return {name: float(value.detach()) for name, value in method.loss(step, X_ADV).items()}


def logits(classifier: PromptedCLIP, x: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier(x)


def slow_block_distances(student: PromptedCLIP, teacher: PromptedCLIP) -> list[float]:
    """Of each image, the mean over blocks of the squared distance between class tokens of unit length, read by hooks."""

    def states(classifier: PromptedCLIP, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        norms = [block.layer_norm1 for block in classifier.encoder.model.vision_model.encoder.layers[1:]]
        hooks = [norm.register_forward_pre_hook(lambda _, rows: found.append(rows[0][:, 0])) for norm in norms]
        norm = classifier.encoder.model.vision_model.post_layernorm
        hooks.append(norm.register_forward_pre_hook(lambda _, rows: found.append(rows[0].reshape(len(x), -1))))
        logits(classifier, x)
        for hook in hooks:
            hook.remove()
        return [F.normalize(rows, dim=-1) for rows in found]

    pairs = list(zip(states(student, X_ADV), states(teacher, X), strict=True))
    return [mean([float(((a[i] - b[i]) ** 2).sum()) for a, b in pairs]) for i in range(len(X))]


def test_apd_terms_agree_with_the_formula(clip: DualEncoder) -> None:
    weights = {
        "adv_ce": 0.7,
        "adv_kl": 1.3,
        "clean_ce": 0.4,
        "clean_kl": 0.6,
        "image_features": 0.9,
        "text_features": 1.1,
        "image_features_l2": 0.3,
        "block_states": 0.5,
    }
    method = build(clip, teacher="frozen", tau=2.0, **weights)
    student, teacher = method.student, method.student.zero_shot()
    z, z_adv, z_t = logits(student, X), logits(student, X_ADV), logits(teacher, X)
    with torch.no_grad():
        image = slow_cosine_distance(student.bind().features(X_ADV), teacher.bind().features(X))
        text = slow_cosine_distance(student.class_features(), teacher.class_features())
        square = mean(slow_squares(student.bind().embed(X_ADV), teacher.bind().embed(X)))
    sure = [slow_softmax(row, 1.0)[y] for row, y in zip(z_t.tolist(), LABELS.tolist(), strict=True)]
    away = [w * d for w, d in zip(sure, slow_block_distances(student, teacher), strict=True)]
    assert terms(method) == pytest.approx(
        {
            "adv_ce": 0.7 * slow_ce(z_adv, LABELS),
            "adv_kl": 1.3 * mean(slow_kl_rows(z_t, z_adv, 2.0)),
            "clean_ce": 0.4 * slow_ce(z, LABELS),
            "clean_kl": 0.6 * mean(slow_kl_rows(z_t, z, 2.0)),
            "image_features": 0.9 * image,
            "text_features": 1.1 * text,
            "image_features_l2": 0.3 * square,
            "block_states": 0.5 * mean(away),
        },
        rel=1e-4,
        abs=1e-6,
    )


def test_iad_trusts_the_teacher_as_far_as_it_is_right(clip: DualEncoder) -> None:
    method = build(clip, variant="iad", teacher="frozen", trust=0.5)
    z, z_adv = logits(method.student, X), logits(method.student, X_ADV)
    z_t, z_t_adv = logits(method.teacher, X), logits(method.teacher, X_ADV)
    trust = [slow_softmax(row, 1.0)[y] ** 0.5 for row, y in zip(z_t_adv.tolist(), LABELS.tolist(), strict=True)]
    rows = zip(trust, slow_kl_rows(z_t, z_adv, 1.0), slow_kl_rows(z, z_adv, 1.0), strict=True)
    assert terms(method)["adv_kl"] == pytest.approx(mean([w * a + (1 - w) * b for w, a, b in rows]), rel=1e-4)


@pytest.mark.parametrize("inner", ["ce", "kl", "teacher-kl", "teacher-pair", "mixed", "features"])
def test_inner_objectives_agree_with_their_definitions(clip: DualEncoder, inner: str) -> None:
    method = build(clip, teacher="frozen", inner=inner)
    step = Step(Batch.of(X, LABELS), method.student.bind())
    got = method.inner(step, step.student.detach())(X_ADV)
    z, z_adv = logits(method.student, X), logits(method.student, X_ADV)
    if inner == "ce":
        wanted = [slow_ce(z_adv[i : i + 1], LABELS[i : i + 1]) for i in range(4)]
    elif inner == "features":
        with torch.no_grad():
            wanted = slow_squares(method.student.bind().embed(X_ADV), method.teacher.bind().embed(X))
    elif inner == "mixed":  # half hard, half soft until the balance is measured
        rows = [slow_softmax(row, 1.0) for row in logits(method.teacher, X).tolist()]
        mixed = [[(p + (i == y)) / 2 for i, p in enumerate(row)] for row, y in zip(rows, LABELS.tolist(), strict=True)]
        wanted = slow_kl_rows(torch.tensor(mixed).log(), z_adv, 1.0)
    else:
        target = {"kl": z, "teacher-kl": logits(method.teacher, X), "teacher-pair": logits(method.teacher, X_ADV)}[
            inner
        ]
        wanted = slow_kl_rows(target, z_adv, 1.0)
    assert got.tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_settings_added_later_are_recorded_only_where_they_are_set() -> None:
    assert (
        APDSettings()
        .model_dump()
        .keys()
        .isdisjoint({"teacher_tau", "image_features_l2", "block_states", "second_teacher"})
    )
    changed = APDSettings(teacher_tau=2.0, image_features_l2=0.5)
    assert APDSettings(**changed.model_dump()) == changed


def test_the_attack_on_the_mixed_label_climbs_what_the_loss_descends(clip: DualEncoder) -> None:
    """Both gradients at x', of the attack's objective and of the outer loss, are the same (tau = 1)."""
    for settings in ({}, {"adv_ce": 0.5, "adv_kl": 2.0}, {"balance": 0.25}):
        method = build(clip, teacher="frozen", tau=1.0, inner="mixed", **settings)
        x, step = X_ADV.clone().requires_grad_(), Step(Batch.of(X, LABELS), method.student.bind())
        climbed = method.inner(step, step.student.detach())(x).mean()
        descended = torch.stack(list(method.loss(step, x).values())).sum()
        hard, soft = method._weights()
        one, other = (torch.autograd.grad(value, x, retain_graph=True)[0] for value in (climbed, descended))
        assert torch.allclose(one * float(hard + soft), other, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    "weights", [{"adv_ce": 0.0, "adv_kl": 0.0}, {"adv_kl": 0.0, "balance": 1.0}, {"adv_ce": 0.0, "balance": "auto"}]
)
def test_an_attack_on_a_label_without_weight_is_refused(weights: dict[str, object]) -> None:
    with refused("method.inner=mixed", "method.adv_ce", "adv_kl", by=ValueError):
        APDSettings(inner="mixed", **weights)
    assert APDSettings(inner="ce", **weights)


def test_by_default_the_soft_label_counts_as_far_as_the_untouched_teacher_is_right(clip: DualEncoder) -> None:
    method = build(clip, teacher="frozen")
    raw = (torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 255).to(torch.uint8)
    labels = torch.arange(40) % 3
    images = Decoded(raw, labels, tuple(map(str, range(40))))
    guesses = logits(method.student.zero_shot(), raw.float() / 255).argmax(dim=1)
    share = sum(int(a == b) for a, b in zip(guesses.tolist(), labels.tolist(), strict=True)) / 40
    assert 0 < share < 1
    method.prepare(Preparation(images, PGD(2), ThreatModel(1 / 255), 0, lambda other: None, images))
    assert float(method.balance) == pytest.approx(share)
    weighted, plain = terms(method), terms(build(clip, teacher="frozen", adv_ce=1.0, adv_kl=1.0))
    assert weighted["adv_ce"] == pytest.approx((1 - share) * plain["adv_ce"], rel=1e-5)
    assert weighted["adv_kl"] == pytest.approx(share * plain["adv_kl"], rel=1e-5)
    assert "balance" in method.state(), "a resumed run does not measure again"


def test_a_weight_that_is_set_is_the_weight() -> None:
    assert APDSettings(adv_kl=2.0).balance is None and APDSettings().balance == "auto"
    saved = APDSettings().model_dump()
    assert APDSettings(**saved).balance == "auto"
    assert APDSettings(variant="rslad").balance is None


@pytest.mark.parametrize(
    ("variant", "names"),
    [
        ("apd", {"adv_ce", "adv_kl"}),
        ("ard", {"adv_kl", "clean_ce"}),
        ("rslad", {"adv_kl", "clean_kl"}),
        ("iad", {"adv_kl", "clean_ce"}),
        ("adaad", {"adv_kl"}),
    ],
)
def test_variants_have_the_terms_of_their_papers(clip: DualEncoder, variant: str, names: set[str]) -> None:
    explicit = (
        {"adv_ce": 1.0, "adv_kl": 1.0, "clean_ce": 0.0, "clean_kl": 0.0, "image_features": 0.0}
        if variant == "apd"
        else {}
    )
    assert set(terms(build(clip, variant=variant, teacher="frozen", text_features=0.0, **explicit))) == names


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *[(name, {}) for name, method in METHODS.items() if method.adversarial],
        *[("apd", {"inner": inner}) for inner in ("kl", "teacher-kl", "teacher-pair", "mixed", "features")],
    ],
)
def test_settings_know_whether_their_attack_is_flat_at_the_clean_image(
    clip: DualEncoder, name: str, settings: dict[str, object]
) -> None:
    method = find_method(name)
    prompts = {**SPEC.model_dump(), **method.Settings.defaults, **method.Settings.fixed}
    prompts = {**prompts, "text_depth": "all", "visual_depth": "all"}
    built = method(method.Settings(prompts=prompts, **settings), PromptedCLIP(clip, None, CLASSES))

    def slope(x: Tensor, moving: bool) -> float:
        """The gradient of what is climbed: the inner objective, or where pixels move with the prompts the loss."""
        x, step = x.clone().requires_grad_(), Step(Batch.of(X, LABELS), built.student.bind())
        objective = built.inner(step, step.student.detach())
        value = torch.stack(list(built.loss(step, x).values())).sum() if moving else objective(x).sum()
        return float(torch.autograd.grad(value, x)[0].abs().max())

    for kind, moving in (("pgd", False), ("free", True)):
        flat = slope(X, moving) < 1e-3 * slope(X_ADV, moving)
        assert flat == built.settings.zero_gradient_at_clean(TrainSettings(attack=AttackSettings(kind=kind))), (
            name,
            kind,
        )


def test_only_encoders_are_left_out_of_what_a_checkpoint_keeps(clip: DualEncoder) -> None:
    method = build(clip, teacher="online")
    method.text_encoder = torch.nn.Linear(2, 2)  # of another package's method, say
    kept = {name.split(".")[0] for name in method.state()}
    assert kept == {"student", "teacher", "balance", "text_encoder"}
    assert not any(".model." in name or name.endswith((".mean", ".std")) for name in method.state())


@pytest.mark.parametrize(
    ("name", "settings"),
    [("vlp", {}), ("advvlp", {}), *[("apd", {"teacher": t}) for t in ("frozen", "tuned", "online")]],
)
def test_what_is_trainable_is_what_the_method_trains(clip: DualEncoder, name: str, settings: dict[str, object]) -> None:
    method = build(clip, name, **settings)
    groups = {n.rsplit(".", 1)[0] for n, p in method.named_parameters() if p.requires_grad}
    student = {"student.prompts.text_tokens", "student.prompts.visual_tokens"}
    teacher = {"teacher.prompts.text_tokens", "teacher.prompts.visual_tokens"}
    assert groups == (student | teacher if settings.get("teacher") == "online" else student)


@pytest.mark.parametrize(("name", "off"), [("advvlp", "clean"), ("trades", "beta"), ("fap", "weight")])
def test_a_term_without_weight_is_none(clip: DualEncoder, name: str, off: str) -> None:
    """A term that is always 0 would pass for an attack that finds nothing, and for a collapse."""
    cls = find_method(name)
    settings = cls.Settings(**{off: 1.0 if off == "clean" else 0.0})
    assert terms(cls(settings, PromptedCLIP(clip, None, CLASSES), seed=0)).keys() == {"clean_ce"}


def test_the_control_is_adversarial_cross_entropy(clip: DualEncoder) -> None:
    method = build(clip, "advvlp")
    assert terms(method) == pytest.approx({"adv_ce": slow_ce(logits(method.student, X_ADV), LABELS)}, rel=1e-4)


@pytest.mark.parametrize("inner", ["ce", "mixed"])
def test_a_step_s_gradients_are_those_of_the_plain_way(clip: DualEncoder, inner: str) -> None:
    """Class features once and trimmed text, against class features recomputed everywhere from full-length prompts."""
    double = load_clip(clip.info.source, dtype=torch.float64)
    method = APD(
        APDSettings(prompts=SPEC, teacher="frozen", clean_ce=0.5, inner=inner),
        PromptedCLIP(double, None, CLASSES),
        seed=0,
    ).double()
    x, seeds, threat = X.double(), torch.arange(4), ThreatModel(4 / 255)
    out = TrainStep(method, attack=PGD(steps=2, step_size=1.0))(Batch.of(x, LABELS), threat)[0]
    torch.stack(list(out.values())).sum().backward()
    got = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    method.zero_grad()

    student, prompts = method.student, method.student.prompts

    def plain(images: Tensor) -> Tensor:
        text = double.encode_text(double.prompt_ids([f"{c}." for c in CLASSES], 2), prompts.text())
        image = double.encode_image(images, prompts.visual())
        text, image = text / text.norm(dim=1, keepdim=True), image / image.norm(dim=1, keepdim=True)
        return double.info.logit_scale * image @ text.T

    ce, z_t, w = torch.nn.functional.cross_entropy, student.zero_shot()(x), float(method.balance)
    onehot = torch.eye(len(CLASSES), dtype=torch.float64)[LABELS]
    climbed = onehot if inner == "ce" else (1 - w) * onehot + w * z_t.softmax(1)
    x_adv = threat.random_start(x, seeds)
    for _ in range(2):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(ce(plain(x_adv), climbed, reduction="sum"), x_adv)
        x_adv = (x + (x_adv.detach() + threat.eps * gradient.sign() - x).clamp(-threat.eps, threat.eps)).clamp(0, 1)
    z_adv = plain(x_adv)
    kl = (z_t.softmax(1) * (z_t.log_softmax(1) - z_adv.log_softmax(1))).sum(1).mean()
    s = method.settings
    hard, soft = (1 - w) * s.adv_ce, w * s.adv_kl * s.tau**2
    (hard * ce(z_adv, LABELS) + soft * kl + s.clean_ce * ce(plain(x), LABELS)).backward()
    assert got and got.keys() == {n for n, p in method.named_parameters() if p.grad is not None}
    for name, parameter in method.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(got[name], parameter.grad, rtol=1e-8, atol=1e-10)


def test_the_registry_describes_itself_and_names_the_nearest() -> None:
    assert all(method.summary and method.source for method in METHODS.values())
    with refused("advlp", meant("advvlp")):
        find_method("advlp")


def test_states_by_block_end_in_the_same_features(clip: DualEncoder) -> None:
    bound = APD(APDSettings(prompts=SPEC), PromptedCLIP(clip, None, CLASSES)).student.bind_detached()
    features, states = bound.embed_by_block(X)
    assert torch.equal(features, bound.embed(X)) and states.shape[:2] == (clip.info.visual_depth, len(X))


def test_block_states_need_a_class_token(siglip: DualEncoder) -> None:
    method = APD(APDSettings(prompts=SPEC, teacher="frozen", block_states=0.5), PromptedCLIP(siglip, None, CLASSES))
    with refused("block_states"):
        method.loss(Step(Batch.of(X, LABELS), method.student.bind()), X_ADV)
