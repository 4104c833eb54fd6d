"""Methods whose loss needs labels get those of the teacher that APD, with the same setting, would choose."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from apd.attacks import PGD, ThreatModel
from apd.data.batch import Batch
from apd.methods import Method, Step
from apd.methods.adversarial import AdvVLP
from apd.methods.apd import APD
from apd.methods.apd_settings import APDSettings
from apd.methods.base import MethodSettings, Preparation
from apd.methods.teachers import CHOSEN, ChosenTeacher
from apd.models import DualEncoder
from apd.models.classifier import PromptedCLIP
from apd.training.batches import Images
from apd.training.pseudo_labels import pseudo_labels
from tests.toys import decoded


def tune(clean: Method) -> None:
    """Stand in for a clean training: the same prompts whoever asks."""
    with torch.no_grad():
        for parameter in clean.student.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 2)


@pytest.mark.parametrize("teacher", CHOSEN)
def test_a_cross_entropy_method_has_the_labels_that_apd_s_teacher_gives(
    clip: DualEncoder, teacher: ChosenTeacher
) -> None:
    bare = PromptedCLIP(clip, None, ("red", "green", "blue"))
    train, val, rest = (
        replace(some, images=F.interpolate(some.images, size=clip.info.image_size))
        for some in (decoded(12, 3, seed=seed) for seed in (0, 1, 2))
    )
    before = Preparation(train, PGD(1), ThreatModel(0.01), 0, tune, val)
    taught = APD(APDSettings(teacher=teacher), bare)
    taught.prepare(before)
    step = Step(Batch.of(rest.pixels(), rest.labels), taught.student.bind())
    known = taught.inner(step, step.student.detach()).target
    soft = (known - (1 - taught.balance) * F.one_hot(rest.labels, 3)) / taught.balance
    found = pseudo_labels(
        AdvVLP(MethodSettings(), bare), before, Images(train, val, clip.info.image_size, False, rest), teacher
    )
    assert torch.equal(found, soft.argmax(dim=-1))
