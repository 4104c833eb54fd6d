"""Methods whose loss needs labels get those of the teacher that APD, with the same setting, would choose."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

import apd
from apd.attacks import PGD, ThreatModel
from apd.data.batch import Batch
from apd.methods import Method, Step
from apd.methods.adversarial import AdvVLP
from apd.methods.apd import APD
from apd.methods.apd_settings import APDSettings
from apd.methods.base import MethodSettings, Preparation
from apd.methods.teachers import CHOSEN
from apd.models import DualEncoder
from apd.models.classifier import PromptedCLIP
from apd.models.prompts import PromptSpec
from apd.runs.config import load_config
from apd.settings.train import ChosenTeacher, TrainSettings
from apd.training.batches import Batches, TrainingImages
from apd.training.loop import Loop
from apd.training.pseudo_labels import pseudo_labels
from tests.refusals import refused
from tests.toys import decoded

MIXTURES = ("frozen", "tuned", "probe", "frozen+tuned", "frozen+probe", "tuned+probe", "frozen+tuned+probe")
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "checkpoint_every": 1, "device": "cpu", "quiet": True}


def tune(clean: Method) -> None:
    """Stand in for a clean training: the same prompts whoever asks."""
    with torch.no_grad():
        for parameter in clean.student.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 2)


@pytest.mark.parametrize("specific", [False, True])
@pytest.mark.parametrize("teacher", CHOSEN)
def test_a_cross_entropy_method_has_the_labels_that_apd_s_teacher_gives(
    clip: DualEncoder, teacher: ChosenTeacher, specific: bool
) -> None:
    bare = PromptedCLIP(clip, None, ("red", "green", "blue"))
    train, val, rest = (
        replace(some, images=F.interpolate(some.images, size=clip.info.image_size))
        for some in (decoded(12, 3, seed=seed) for seed in (0, 1, 2))
    )
    before = Preparation(train, PGD(1), ThreatModel(0.01), 0, tune, val)
    prompts = PromptSpec(class_specific=specific)
    taught = APD(APDSettings(teacher=teacher, prompts=prompts), bare)
    taught.prepare(before)
    step = Step(Batch.of(rest.pixels(), rest.labels), taught.student.bind())
    known = taught.inner(step, step.student.detach()).target
    soft = (known - (1 - taught.balance) * F.one_hot(rest.labels, 3)) / taught.balance
    found, by = pseudo_labels(AdvVLP(MethodSettings(prompts=prompts), bare), before, rest, teacher)
    assert torch.equal(found, soft.argmax(dim=-1)) and by == taught.facts()["teacher"]


def test_a_run_says_who_labelled_its_images_if_interrupted_too(
    tmp_path: Path, shallow: DualEncoder, colours: Path, brief_teachers: None
) -> None:
    data = apd.load_data(colours, shots=2, unlabelled="rest", unlabelled_limit=4)
    start = partial(
        apd.train, shallow, data, method={"name": "advvlp", "prompts": {"text_tokens": 2, "visual_tokens": 2}}, **QUICK
    )
    whole = start(output=tmp_path / "whole")
    assert whole.manifest["facts"]["pseudo_labels_by"] in MIXTURES
    own = Loop.train_batch

    def stopping(self: Loop, *arguments: object) -> object:
        self.stop |= self.run is not None
        return own(self, *arguments)

    with patch.object(Loop, "train_batch", stopping), pytest.raises(KeyboardInterrupt):
        start(output=tmp_path / "stopped")
    with patch("apd.training.loop.pseudo_labels", side_effect=AssertionError("labelled twice")):
        resumed = start(output=tmp_path / "stopped", resume=True)
    assert resumed.manifest["facts"] == whole.manifest["facts"]


def test_a_teacher_of_labels_that_nobody_needs_or_can_give_is_refused() -> None:
    with refused("train.pseudo_labels=best", "method apd", "remove it"):
        load_config(flags={"data.source": "digits", "data.unlabelled": "rest"}, sets=["train.pseudo_labels=best"])
    images, settings = decoded(4, 2), TrainSettings(pseudo_labels="best")
    with refused("train.pseudo_labels=best", "4 labelled and 0 unlabelled", "remove it"):
        Batches(TrainingImages(images, images, 8, False), settings)
    nothing = replace(images, images=images.images[:0], labels=images.labels[:0], ids=())
    with refused("train.pseudo_labels=best", "0 labelled and 4 unlabelled"):
        Batches(TrainingImages(nothing, images, 8, False, images), settings)


@pytest.mark.parametrize("takes_text", [True, False])
@pytest.mark.usefixtures("brief_teachers")
def test_a_tower_without_token_blocks_gets_labels_too(
    tmp_path: Path, shallow: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch, takes_text: bool
) -> None:
    info = shallow.info
    depth = info.text_depth if takes_text else 0
    monkeypatch.setattr(shallow, "info", replace(info, visual_depth=0, visual_width=0, text_depth=depth))
    data = apd.load_data(colours, shots=2, unlabelled="rest", unlabelled_limit=4)
    method = {"name": "apt"} if takes_text else {"name": "advvp-pixels"}
    run = apd.train(shallow, data, method=method, output=tmp_path / "run", **QUICK)
    found = run.manifest["facts"]["pseudo_labels_by"]
    assert found in MIXTURES and (takes_text or "tuned" not in found)


def test_the_tuning_of_the_teacher_itself_asks_for_no_labels(
    tmp_path: Path, shallow: DualEncoder, colours: Path, brief_teachers: None
) -> None:
    data = apd.load_data(colours, shots=2, unlabelled="rest", unlabelled_limit=4)
    run = apd.train(shallow, data, method="advvlp", output=tmp_path / "run", pseudo_labels="best", **QUICK)
    assert run.manifest["facts"]["pseudo_labels_by"] and run.config.train.pseudo_labels == "best"
