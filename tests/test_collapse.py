"""Collapse and divergence are noticed, explained, and told from chance."""

from __future__ import annotations

import json
import math
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from apd.errors import ApdError
from apd.methods import Method, Step
from apd.models import DualEncoder
from apd.runs.folder import Run
from apd.settings.train import TrainSettings
from apd.training.collapse import CollapseMonitor, Validation

from .refusals import refused
from .training import start


def looked(clean: int, robust: int, largest: int = 20, *, images: int = 100, alike: float = 0.5) -> Validation:
    """A look at the validation images of ten classes."""
    return Validation(images, clean, robust, largest, 10, alike)


def test_collapse_is_noticed_and_explained() -> None:
    monitor = CollapseMonitor(TrainSettings())
    assert monitor.check_validation({"adv_ce": 0.5}, looked(90, 40)) == []
    (warning,) = monitor.check_validation({"adv_ce": 0.0001}, looked(92, 10))
    assert "0.0001" in warning and "40.0" in warning and "10.0" in warning and "train.attack.steps" in warning
    (warning,) = monitor.check_validation({"adv_ce": 2.3}, looked(10, 10, 100))
    assert "train.optimizer.lr" in warning


def test_collapse_needs_evidence() -> None:
    """One epoch, or few images per class that go to one class three times, may be chance; more of both is not."""
    one_class = looked(10, 10, 100)
    few = looked(2, 2, 20, images=20)
    for found, warned in ((one_class, [False, False, True, True]), (few, [False] * 4)):
        monitor = CollapseMonitor(TrainSettings())
        assert [bool(monitor.check_validation({"adv_ce": 2.3}, found)) for _ in range(4)] == warned
    monitor.check_validation({"adv_ce": 0.5}, looked(14, 10, 6, images=20))
    assert monitor.check_validation({"adv_ce": 2.3}, few), "14 of 20 and then 2 of 20 is not chance"
    resumed = CollapseMonitor(TrainSettings())
    resumed.load(json.loads(json.dumps(monitor.state())))
    assert resumed.check_validation({"adv_ce": 2.3}, few)


@pytest.mark.parametrize("images", [20, 60, 300])
def test_a_fall_counts_from_a_level_of_one_percent(images: int) -> None:
    """Compared with the exact binomial distribution: 0.01 is reached between two neighbouring counts."""
    best, monitor = images // 2, CollapseMonitor(TrainSettings())
    at_most = accumulate(math.comb(images, k) for k in range(images + 1))
    limit = sum(count / 2**images < 0.01 for count in at_most)
    for robust, warned in ((limit, False), (limit - 1, True)):
        monitor.load({"best_robust": 100 * best / images})
        found = monitor.check_validation({"adv_ce": 0.0}, looked(robust, robust, 1, images=images))
        assert bool(found) == warned


def test_equal_class_features_are_not_blamed_on_the_learning_rate() -> None:
    monitor = CollapseMonitor(TrainSettings())
    warnings = [monitor.check_validation({"adv_ce": 2.3}, looked(10, 0, 100, alike=1.0)) for _ in range(4)]
    assert all(len(found) == 1 and "tokenizer" in found[0] and ".lr" not in found[0] for found in warnings)


@pytest.mark.parametrize(
    ("optimizer", "precision", "advice"),
    [
        ({}, "fp32", {"train.optimizer.lr"}),
        ({"clip": 0.5}, "bf16", {"train.optimizer.lr", "train.precision=fp32"}),
        ({"clip": None}, "fp32", {"train.optimizer.lr", "train.optimizer.clip=1"}),
        ({"clip": 5}, "bf16", {"train.optimizer.lr", "train.optimizer.clip=1", "train.precision=fp32"}),
    ],
)
def test_divergence_is_explained_without_advice_that_is_followed_already(
    optimizer: dict[str, Any], precision: str, advice: set[str]
) -> None:
    monitor = CollapseMonitor(TrainSettings.model_validate({"optimizer": optimizer, "precision": precision}))
    monitor.check_loss({"adv_ce": 2.0}, 7)
    every = ("train.optimizer.lr", "train.optimizer.clip", "train.precision")
    followed = [name for name in every if not any(setting.startswith(name) for setting in advice)]
    with refused("adv_ce", "nan", "7", *advice, by=ApdError) as error:
        monitor.check_loss({"clean_ce": 1.0, "adv_ce": math.nan}, 7)
    assert not any(name in str(error.value) for name in [*followed, "clean_ce"])
    with refused("logits", *advice, by=ApdError) as error:
        monitor.check_logits(torch.tensor([1.0, math.inf]))
    assert not any(name in str(error.value) for name in followed)
    with refused("adv_ce", "inf", by=ApdError) as error:
        monitor.check_loss({"adv_ce": math.inf}, 1)
    assert ("bf16" in str(error.value)) == (precision == "bf16") and "lr" not in str(error.value)


def test_a_loss_that_is_not_finite_from_the_start_stops_after_one_step(
    tmp_path: Path, clip: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def faulty(method: Method, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
        steps.append(1)
        return {"clean_ce": step.cross_entropy(step.clean_logits()) * math.nan}

    monkeypatch.setattr("apd.methods.clean.CleanTuning.loss", faulty)
    with refused("clean_ce", "nan", by=ApdError):
        start(tmp_path / "run", clip, colours, "method=vlp", "train.log_every=10")
    assert len(steps) == 1


DIVERGING = (
    "train.optimizer.lr=1e38",
    "train.optimizer.clip=null",
    "train.optimizer.name=sgd",
    "train.warmup_epochs=0",
    "method.prompts.class_specific=false",
)


def test_a_run_whose_last_step_diverges_does_not_finish(tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    """One step only: its loss is finite, and so are the prompts, but what the tower makes of them is not."""
    with refused("logits", "train.optimizer.lr", by=ApdError):
        start(tmp_path / "run", clip, colours, *DIVERGING, "train.epochs=1", "train.batch_size=12")
    assert not Run.open(tmp_path / "run", finished=False).finished
    assert not (tmp_path / "run" / "prompts.safetensors").exists()


def test_divergence_stops_training_and_keeps_the_checkpoint(tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    with refused("adv_ce", "nan", "2", "train.optimizer.lr", by=ApdError):
        start(tmp_path / "run", clip, colours, *DIVERGING, "method.teacher=frozen")
    assert Run.open(tmp_path / "run", finished=False).load_checkpoint() is not None
