"""Teachers of APD: which are asked, what they must fit, and how they learn."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import apd
from apd.data.batch import Batch
from apd.methods import Preparation, Step
from apd.methods.apd import APD, APDSettings
from apd.models import DualEncoder, load_clip
from apd.models.classifier import PromptedCLIP
from apd.models.prompts import PromptSpec
from apd.models.shared import share_classifier
from apd.runs.config import recorded

from .refusals import refused
from .test_methods import (
    CLASSES,
    LABELS,
    X_ADV,
    X,
    build,
    logits,
    mean,
    slow_ce,
    slow_kl_rows,
    slow_softmax,
    terms,
)

FEATURES = ("image_features", "image_features_l2", "text_features")


def test_features_by_themselves_train_the_visual_tokens_only(clip: DualEncoder, tmp_path: Path, colours: Path) -> None:
    alone = {"adv_ce": 0.0, "adv_kl": 0.0, "image_features_l2": 1.0, "inner": "features"}
    method = build(clip, **alone)
    assert method.settings.teacher == "frozen" and terms(method).keys() == {"image_features_l2"}
    step = Step(Batch.of(X, LABELS), method.student.bind())
    method.loss(step, X_ADV)["image_features_l2"].backward()
    moved = {n.split(".")[2] for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {"visual_tokens"}
    section = {"name": "apd", "prompts": {"text_tokens": 2, "visual_tokens": 2}, **alone}
    data = apd.load_data(colours, shots=2)
    run = apd.train(clip, data, method=section, epochs=1, device="cpu", quiet=True, output=tmp_path / "run")
    assert run.finished


@pytest.mark.parametrize("depth", [3, "all"])
def test_a_shallower_teacher_has_prompts_as_deep_as_it_is(
    clip: DualEncoder, shallow_folder: Path, depth: int | str
) -> None:
    prompts = {"text_tokens": 2, "visual_tokens": 2, "visual_depth": depth, "text_depth": depth}
    settings = APDSettings(teacher="tuned", teacher_model=str(shallow_folder), prompts=prompts)
    method = APD(settings, PromptedCLIP(clip, None, ["one", "two"]), seed=0)
    deep = clip.info.visual_depth if depth == "all" else depth
    assert (len(method.student.prompts.visual()), len(method.teacher.prompts.visual())) == (deep, 2)
    assert len(method.teacher.prompts.text()) == 2


@pytest.mark.parametrize("asked", [{"experts": 3}, {"coupling": "text-to-vision"}, {"class_specific": True}])
def test_a_teacher_without_text_blocks_has_nothing_of_text_tokens(clip: DualEncoder, asked: dict[str, Any]) -> None:
    spec = PromptSpec(text_tokens=2, visual_tokens=2, **asked).fitting(replace(clip.info, text_depth=0))
    assert PromptSpec.model_validate(spec.model_dump()) == spec, "it is one that could be asked for"
    assert (spec.text_tokens, spec.visual_tokens, spec.experts, spec.coupling) == (0, 2, 1, "none")


def test_online_teacher_learns_from_clean_labels_and_feedback(clip: DualEncoder) -> None:
    method = build(clip, teacher="online", feedback=0.5)
    z_adv, z_t = logits(method.student, X_ADV), logits(method.teacher, X)
    got = terms(method)
    assert got["teacher_ce"] == pytest.approx(slow_ce(z_t, LABELS), rel=1e-4)
    assert got["feedback"] == pytest.approx(0.5 * mean(slow_kl_rows(z_t, z_adv, 1.0)), rel=1e-4)


def test_student_and_teacher_losses_do_not_leak_into_each_other(clip: DualEncoder) -> None:
    """The student's terms move only the student, the teacher's only the teacher (the stop-gradients of the formula)."""
    method = build(clip, teacher="online", adv_ce=1.0, feedback=0.5, clean_kl=1.0, **dict.fromkeys(FEATURES, 1.0))
    for name in ("adv_ce", "adv_kl", "clean_kl", *FEATURES, "teacher_ce", "feedback"):
        method.zero_grad()
        step = Step(Batch.of(X, LABELS), method.student.bind())
        method.loss(step, X_ADV)[name].backward()
        moved = {n.split(".")[0] for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert moved == ({"teacher"} if name in ("teacher_ce", "feedback") else {"student"}), name


def test_teacher_and_student_may_have_temperatures_of_their_own(clip: DualEncoder) -> None:
    """tau^2 KL(softmax(z_T / teacher_tau) || softmax(z_S / tau)), and the softer label in the attack's mixture."""
    method = build(clip, teacher="online", tau=0.5, teacher_tau=1.6, clean_kl=1.0, adv_kl=1.0, adv_ce=1.0, feedback=1.0)
    z, z_adv, z_t = (logits(*pair) for pair in ((method.student, X), (method.student, X_ADV), (method.teacher, X)))

    def wanted(z_s: Tensor) -> float:
        soft, student = ([slow_softmax(row, t) for row in a.tolist()] for a, t in ((z_t, 1.6), (z_s, 0.5)))
        rows = zip(soft, student, strict=True)
        return 0.25 * mean([sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) for p, q in rows])

    got = terms(method)
    assert got["clean_kl"] == pytest.approx(wanted(z), rel=1e-4)
    assert [got["adv_kl"], got["feedback"]] == pytest.approx([wanted(z_adv)] * 2, rel=1e-4)
    mixing = build(clip, teacher="frozen", teacher_tau=1.6, balance=1.0)
    step = Step(Batch.of(X, LABELS), mixing.student.bind())
    soft = torch.tensor([slow_softmax(row, 1.6) for row in logits(mixing.teacher, X).tolist()])
    torch.testing.assert_close(mixing.inner(step, step.student.detach()).target, soft, rtol=1e-4, atol=1e-6)
    assert terms(build(clip, teacher="frozen", tau=2.0, teacher_tau=2.0)) == terms(
        build(clip, teacher="frozen", tau=2.0)
    )
    with refused("method.teacher_tau", by=ValueError):
        APDSettings(teacher_tau=2.0, adv_ce=1.0, adv_kl=0.0)


def test_a_second_teacher_shares_in_the_soft_label(clip: DualEncoder, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The mean of the teacher's probabilities on x and of the second's on x', both at the teacher's temperature."""
    from .models import save_clip

    folder = save_clip(tmp_path_factory.mktemp("second") / "clip", seed=9)
    method = build(clip, teacher="frozen", second_teacher=str(folder), tau=0.5, teacher_tau=1.6, adv_kl=1.0)
    first, second = logits(method.teacher, X), logits(PromptedCLIP(load_clip(folder), None, CLASSES), X_ADV)
    pairs = zip(first.tolist(), second.tolist(), logits(method.student, X_ADV).tolist(), strict=True)
    rows = []
    for one, other, student in pairs:
        p = [(a + b) / 2 for a, b in zip(slow_softmax(one, 1.6), slow_softmax(other, 1.6), strict=True)]
        rows.append(0.25 * sum(a * math.log(a / b) for a, b in zip(p, slow_softmax(student, 0.5), strict=True)))
    assert terms(method)["adv_kl"] == pytest.approx(mean(rows), rel=1e-4)
    with refused("method.second_teacher", by=ValueError):
        APDSettings(second_teacher="other", adv_ce=1.0, adv_kl=0.0)


def test_a_run_s_prompts_can_teach(tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    data = apd.load_data(colours, shots=2)
    quick: dict[str, Any] = {"epochs": 1, "device": "cpu", "quiet": True}
    small = {"text_tokens": 2, "visual_tokens": 2}
    clean = apd.train(clip, data, method={"name": "vlp", "prompts": small}, output=tmp_path / "clean", **quick)
    section = {"name": "apd", "prompts": small, "teacher": "frozen", "teacher_model": str(clean.path), "balance": 1.0}
    taught = apd.train(clip, data, method=section, output=tmp_path / "taught", **quick)
    about = taught.manifest["teachers"]["teacher_model"]
    assert about["prompts_sha256"] == clean.manifest["prompts_sha256"]
    assert about["weights_sha256"] == clip.info.weights_sha256
    plain = apd.train(clip, data, method={**section, "teacher_model": None}, output=tmp_path / "plain", **quick)
    one, other = taught.load_prompts(), plain.load_prompts()
    assert any(not torch.equal(one[name], other[name]) for name in one)
    student = {"name": "promptkd", "prompts": small, "teacher_model": str(clean.path)}
    assert apd.train(clip, data, method=student, **quick).manifest["teachers"].keys() == {"teacher_model"}
    for teacher in ("tuned", "online"):
        with refused("method.teacher_model", f"method.teacher={teacher}"):
            apd.train(clip, data, method={**section, "teacher": teacher}, **quick)


def test_what_a_run_teaches_is_what_it_answers(clip: DualEncoder) -> None:
    learned = build(clip, "advvlp").student
    held = share_classifier("some/run", learned)
    method = build(clip, teacher="frozen", teacher_model="some/run", adv_kl=1.0)
    z_t, z_adv = logits(learned, X), logits(method.student, X_ADV)
    assert terms(method)["adv_kl"] == pytest.approx(mean(slow_kl_rows(z_t, z_adv, 1.0)), rel=1e-4)
    assert {
        name for name, p in method.named_parameters() if p.requires_grad and not name.startswith("student")
    } == set()
    assert held is learned


def test_a_robust_teacher_labels_the_adversarial_image(
    clip: DualEncoder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from .models import save_clip

    folder = save_clip(tmp_path_factory.mktemp("robust") / "clip", seed=9)
    method = build(clip, variant="mtard", teacher="frozen", robust_teacher=str(folder))
    z_adv, target = logits(method.student, X_ADV), logits(method.robust, X_ADV)
    assert terms(method)["adv_kl"] == pytest.approx(0.5 * mean(slow_kl_rows(target, z_adv, 1.0)), rel=1e-4)
    with refused("method.robust_teacher", by=ValueError):
        APDSettings(variant="mtard")


def test_a_teacher_must_see_the_same_image(clip: DualEncoder, tmp_path_factory: pytest.TempPathFactory) -> None:
    from .models import save_clip

    folder = save_clip(tmp_path_factory.mktemp("large") / "clip", size=24)
    with refused(str(folder), "24", "16"):
        build(clip, teacher="frozen", teacher_model=str(folder))


def test_features_of_different_width_cannot_be_compared(
    clip: DualEncoder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from transformers import CLIPConfig, CLIPModel

    from .models import save_clip

    folder = save_clip(tmp_path_factory.mktemp("wide") / "clip")
    config = CLIPConfig.from_pretrained(folder)
    config.projection_dim = 28
    CLIPModel(config).save_pretrained(folder)
    assert terms(build(clip, teacher_model=str(folder), clean_kl=1.0))["clean_kl"] > 0
    for name, value in {**dict.fromkeys(FEATURES, 1.0), "inner": "features"}.items():
        with refused(f"method.{name}", "28", "20"):
            build(clip, teacher_model=str(folder), **{name: value})


def test_a_robust_teacher_that_nothing_asks_is_refused() -> None:
    with refused("method.robust_teacher", by=ValueError):
        APDSettings(robust_teacher="other")
    for asking in ({"soft_target": "adversarial"}, {"variant": "iad"}, {"inner": "teacher-pair"}):
        assert APDSettings(robust_teacher="other", **asking).robust_teacher == "other"
    with refused("method.robust_teacher", by=ValueError):
        APDSettings(robust_teacher="other", soft_target="adversarial", balance=0.0)


@pytest.mark.parametrize("teacher", [{"teacher": "tuned"}, {"teacher": "online"}, {"teacher_model": "other"}])
def test_a_teacher_that_no_term_asks_is_refused(teacher: dict[str, str]) -> None:
    hard = {"adv_ce": 1.0, "adv_kl": 0.0}
    name = "method.teacher_model" if "teacher_model" in teacher else f"method.teacher={teacher['teacher']}"
    for silent in (hard, {"balance": 0.0}, {**hard, "trust": 0.1}, {**hard, "soft_target": "adversarial"}):
        with refused(name, "method.adv_kl", by=ValueError):
            APDSettings(**silent, **teacher)
    with refused(name, "method.adv_kl", by=ValueError):  # the robust one gives the soft label in its place
        APDSettings(soft_target="adversarial", robust_teacher="robust", inner="ce", **teacher)
    asking: list[dict[str, object]] = [{}, {**hard, "clean_kl": 1.0}, {**hard, "inner": "teacher-kl"}]
    asking += [{**hard, "inner": "teacher-pair"}, {**hard, "text_features": 1.0}, {"soft_target": "adversarial"}]
    for settings in asking:
        assert APDSettings(**settings, **teacher)
    assert APDSettings(balance=0.0) and APDSettings(**hard), "the default teacher costs nothing"


@pytest.mark.parametrize(("setting", "value"), [("soft_target", "adversarial"), ("trust", 0.5)])
def test_what_is_about_a_soft_label_that_nobody_asks_for_is_refused(setting: str, value: object) -> None:
    for silent in ({"adv_ce": 1.0, "adv_kl": 0.0, "inner": "ce"}, {"balance": 0.0, "inner": "ce"}):
        with refused(f"method.{setting}", "method.adv_kl", by=ValueError):
            APDSettings.model_validate({**silent, "teacher": "frozen", setting: value})


def test_what_a_variant_sets_or_a_finished_run_holds_is_not_held_against_anyone() -> None:
    assert APDSettings(variant="iad", adv_kl=0.0, teacher="frozen").trust
    old = {"adv_ce": 1.0, "adv_kl": 0.0, "inner": "ce", "teacher": "frozen", "trust": 1.0}
    read = recorded({"data": {"source": "digits"}, "method": {"name": "apd", **old}}, {})
    assert read.method.settings.trust == 1.0  # type: ignore[attr-defined]


def test_tuning_moves_the_teacher_s_prompts_and_only_them(clip: DualEncoder) -> None:
    method = build(clip, teacher="tuned", balance=0.5)
    before = {n: t.clone() for n, t in method.state().items()}

    def tune(clean: object) -> None:
        assert not clean.adversarial
        with torch.no_grad():
            for parameter in clean.student.prompts.parameters():
                parameter.add_(1.0)

    method.prepare(Preparation(None, None, None, 0, tune, None))
    for name, tensor in method.state().items():
        torch.testing.assert_close(tensor, before[name] + (1.0 if name.startswith("teacher") else 0.0))


@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "iad"},
        {"soft_target": "adversarial"},
        {"block_states": 1.0},
        {"block_states": 1.0, "adv_ce": 1.0, "adv_kl": 0.0, "inner": "ce"},
        {"block_states": 1.0, "soft_target": "adversarial"},
    ],
)
def test_an_online_teacher_learns_in_every_variant(clip: DualEncoder, settings: dict[str, object]) -> None:
    method = build(clip, teacher="online", **settings)
    step = Step(Batch.of(X, LABELS), method.student.bind())
    torch.stack(list(method.loss(step, X_ADV).values())).sum().backward()
    for name, parameter in method.teacher.prompts.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
