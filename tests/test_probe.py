"""The linear probe as teacher: the optimum that scikit-learn finds, when it is chosen, and who is taught by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from apd.attacks import PGD, ThreatModel
from apd.data.batch import Batch
from apd.data.dataset import Decoded
from apd.methods import Method, Step
from apd.methods.apd import APD
from apd.methods.apd_settings import APDSettings, Teacher
from apd.methods.base import Preparation
from apd.methods.blended import BlendedTeacher
from apd.methods.probe import PENALTY, fit_probe, probe_logits
from apd.models import DualEncoder
from apd.models.classifier import BoundCLIP, PromptedCLIP
from apd.models.prompts import PromptSpec
from tests.refusals import refused
from tests.toys import decoded

SMALL = PromptSpec(text_tokens=2, visual_tokens=2)
NAMES = ("red", "green", "blue")


def no_tuning(method: Method) -> None:
    raise AssertionError("a probe needs no prompts to be tuned")


def before(images: Decoded, validation: Decoded, tune: Callable[[Method], None] = no_tuning) -> Preparation:
    return Preparation(images, PGD(1), ThreatModel(0.01), 0, tune, validation)


@pytest.fixture
def bare(clip: DualEncoder) -> PromptedCLIP:
    return PromptedCLIP(clip, None, NAMES)


@pytest.fixture
def images(clip: DualEncoder) -> Decoded:
    found = decoded(30, 3)
    return replace(found, images=F.interpolate(found.images, size=clip.info.image_size))


def reference(features: Tensor, labels: Tensor) -> Tensor:
    """Probabilities of scikit-learn's logistic regression on the same images."""
    fitted = LogisticRegression(C=1 / PENALTY, fit_intercept=False, tol=1e-8, max_iter=10_000)
    fitted.fit(features.numpy(), labels.numpy())
    return torch.from_numpy(fitted.predict_proba(features.numpy())).float()


@pytest.mark.parametrize(("n", "classes"), [(6, 3), (60, 3), (40, 10)])
def test_a_probe_is_scikit_learn_s_logistic_regression(n: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(n)
    labels = torch.arange(n) % classes
    features = F.normalize(torch.randn(n, 16, generator=generator) + F.one_hot(labels, 16), dim=-1)
    weights = fit_probe(features, labels, classes)
    torch.testing.assert_close(
        probe_logits(features, weights).softmax(-1), reference(features, labels), atol=2e-4, rtol=0
    )
    assert torch.equal(weights, fit_probe(features, labels, classes))


def test_a_class_without_an_image_is_not_its_answer() -> None:
    """Features of a CLIP model point in much the same direction, from which that class is pushed away."""
    labels = torch.arange(8) % 2
    noise = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    features = F.normalize(0.3 * noise + F.one_hot(labels, 4) + 1, dim=-1)
    answers = probe_logits(features, fit_probe(features, labels, 3)).argmax(-1)
    assert 2 not in answers.tolist()


def test_where_the_probe_knows_the_classes_it_teaches(bare: PromptedCLIP, images: Decoded) -> None:
    method = APD(APDSettings(teacher="probe", prompts=SMALL), bare)
    method.prepare(before(images, images))  # the same images: the probe has learned them, and zero-shot CLIP has not
    features = bare.bind_detached().features(images.pixels())
    expected = reference(features, images.labels)
    accuracy = float((expected.argmax(-1) == images.labels).float().mean())
    assert method.facts() == {"balance": pytest.approx(accuracy, abs=1e-5), "teacher": "probe"}
    batch = Batch.of(images.pixels()[:5], images.labels[:5])
    step = Step(batch, method.student.bind())
    w = method.balance
    mixed = (1 - w) * F.one_hot(images.labels[:5], 3) + w * expected[:5]
    torch.testing.assert_close(method.inner(step, step.student.detach()).target, mixed, atol=2e-4, rtol=0)


def test_where_zero_shot_clip_knows_more_it_teaches(bare: PromptedCLIP, images: Decoded) -> None:
    known = bare.bind_detached().logits(images.pixels()).argmax(-1)
    shuffled = replace(images, labels=torch.randint(3, (30,), generator=torch.Generator().manual_seed(0)))
    method = APD(APDSettings(teacher="probe", prompts=SMALL), bare)
    method.prepare(before(shuffled, replace(images, labels=known)))
    assert method.facts() == {"balance": 1.0, "teacher": "frozen"}


def test_the_best_teacher_may_be_the_mean_of_tuned_prompts_and_a_probe(bare: PromptedCLIP, images: Decoded) -> None:
    """Each is sure of what it knows: tuned prompts of the first class, the probe of the others."""
    method = APD(APDSettings(teacher="best", prompts=SMALL), bare)
    tuned = torch.where(images.labels[:, None] == 0, 6.0 * F.one_hot(images.labels, 3), torch.zeros(30, 3))
    features = bare.bind_detached().features(images.pixels())
    shown = replace(images, labels=images.labels.masked_fill(images.labels == 0, 1))
    with patch.object(BoundCLIP, "logits", lambda _, x: tuned[: len(x)]):
        method.prepare(before(shown, images, lambda _: None))
    assert method.facts()["teacher"] == "tuned+probe"
    batch = Batch.of(images.pixels()[:5], images.labels[:5])
    step = Step(batch, method.student.bind())
    own = method.blend.tuned.bind_detached().logits(batch.x).softmax(-1)
    expected = (own + probe_logits(features[:5], method.blend.probe).softmax(-1)) / 2
    w = method.balance
    mixed = (1 - w) * F.one_hot(images.labels[:5], 3) + w * expected
    torch.testing.assert_close(method.inner(step, step.student.detach()).target, mixed, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("teacher", "parts"), [("mean", ("frozen",)), ("best", ("frozen", "probe"))])
def test_a_clip_that_takes_no_prompts_is_not_tuned(
    bare: PromptedCLIP, images: Decoded, monkeypatch: pytest.MonkeyPatch, teacher: str, parts: tuple[str, ...]
) -> None:
    monkeypatch.setattr(bare.encoder, "info", replace(bare.encoder.info, text_depth=0, visual_depth=0))
    blend = BlendedTeacher(teacher, bare, SMALL, seed=0)
    blend.fit(before(images, images))
    assert blend.parts == parts and blend.logits(images.pixels()).shape == (30, 3)


@pytest.mark.parametrize("teacher", ["probe", "best"])
def test_what_was_fitted_is_part_of_the_state(bare: PromptedCLIP, images: Decoded, teacher: Teacher) -> None:
    """Else a resumed run would be taught by nobody."""
    method, other = (APD(APDSettings(teacher=teacher, prompts=SMALL), bare) for _ in range(2))
    method.prepare(before(images, images, lambda _: None))
    other.restore(method.state())
    known, found = method.blend, other.blend
    assert known.probe.any() and torch.equal(known.probe, found.probe) and torch.equal(known.shares, found.shares)


@pytest.mark.parametrize(
    "asked",
    [
        {"image_features": 1.0},
        {"image_features_l2": 1.0},
        {"block_states": 1.0},
        {"text_features": 1.0},
        {"trust": 0.1},
        {"soft_target": "adversarial"},
        {"inner": "features"},
        {"variant": "rslad"},
    ],
)
def test_more_than_soft_labels_on_x_needs_a_frozen_teacher(asked: dict[str, Any]) -> None:
    """By default it is the frozen one; a teacher that somebody names is refused, and not replaced in secret."""
    found = APDSettings(**asked)
    assert found.teacher == "frozen"
    assert APDSettings(**found.model_dump()) == found, "a saved configuration names the frozen one"
    for teacher in ("auto", "probe", "best", "mean"):
        with refused(f"method.teacher={teacher}", "frozen", by=ValueError):
            APDSettings(teacher=teacher, **asked)
