"""How many optimiser steps a training takes, and what falls on which of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import apd
from apd.models import DualEncoder
from apd.settings.train import TrainSettings
from apd.training.loop import Loop
from apd.training.schedule import Schedule
from apd.util.section import RECORDED

from .refusals import refused
from .training import metrics, same, start


def schedule(batches: int, **settings: Any) -> Schedule:
    return Schedule(TrainSettings(**settings), batches)


def test_epochs_are_passes_over_the_images() -> None:
    by_epochs = schedule(7, epochs=4, warmup_epochs=1.5, validate_every=2)
    assert (by_epochs.steps, by_epochs.span(1.5), by_epochs.validate_every) == (28, 10, 14)


def test_with_steps_everything_falls_on_the_same_steps_however_many_images_there_are() -> None:
    settings = {"epochs": 10, "warmup_epochs": 2, "eps_warmup_epochs": 5, "validate_every": 3, "eps": "4/255"}
    few, many = (schedule(batches, steps=40, **settings) for batches in (1, 900))
    assert few.steps == many.steps == 40 and few.validate_every == many.validate_every == 12
    for step in range(40):
        rate = 0.003 * ((step + 1) / 8 if step < 8 else (1 + math.cos(math.pi * (step - 8) / 32)) / 2)
        assert few.learning_rate(step) == many.learning_rate(step) == pytest.approx(rate)
        assert few.threat(step) == many.threat(step)
        assert few.threat(step).eps == pytest.approx(4 / 255 * min(1, (step + 1) / 20))
    assert schedule(3, steps=2).validate_every == 1, "a share of a few steps is a step at least"


@pytest.mark.parametrize("more", [{}, {"steps": 100}])
@pytest.mark.parametrize(
    ("wait", "warmup", "never"),
    [(10, 0, "throughout"), (5, 0, "throughout"), (0, 6, "full"), (2, 3.5, "full"), (2, 3, None), (0, 5, None)],
)
def test_an_eps_that_is_never_reached_is_refused(
    wait: float, warmup: float, never: str | None, more: dict[str, int]
) -> None:
    settings = {"epochs": 5, "eps_warmup_wait": wait, "eps_warmup_epochs": warmup, **more}
    if never is None:
        found = schedule(20, **settings)
        assert found.threat(found.steps - 1).eps == found.settings.threat.eps
        return
    names = [f"train.eps_warmup_wait={wait}", f"train.eps_warmup_epochs={warmup}", "train.epochs=5", never]
    with refused(*names, by=ValueError):
        TrainSettings(**settings)
    assert TrainSettings.model_validate(settings, context=RECORDED), "a finished run stays readable"


@pytest.mark.parametrize(
    ("settings", "batches", "budgets"),
    [
        ({"epochs": 1, "eps_warmup_wait": 0.9}, 3, [0, 0, 1]),
        ({"epochs": 3, "eps_warmup_wait": 1.5, "eps_warmup_epochs": 1.5}, 1, [0, 0, 1]),
        ({"epochs": 30, "eps_warmup_wait": 28, "steps": 5}, 9, [0, 0, 0, 0, 1]),
        ({"epochs": 4, "eps_warmup_wait": 1, "eps_warmup_epochs": 2}, 2, [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]),
    ],
)
def test_the_full_eps_is_reached_however_few_steps_there_are(
    settings: dict[str, Any], batches: int, budgets: list[float]
) -> None:
    found = schedule(batches, eps="1/255", **settings)
    assert [255 * found.threat(step).eps for step in range(found.steps)] == pytest.approx(budgets)


def test_steps_as_many_as_the_epochs_take_train_the_same_prompts(
    tmp_path: Path, clip: DualEncoder, colours: Path
) -> None:
    by_epochs = start(tmp_path / "epochs", clip, colours, "method.name=advvlp")
    by_steps = start(tmp_path / "steps", clip, colours, "method.name=advvlp", "train.steps=6")
    assert same(by_epochs.load_prompts(), by_steps.load_prompts()), "2 batches, 3 epochs"
    assert "steps" not in by_epochs.config.model_dump(mode="json")["train"]


def test_training_ends_within_a_pass(tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    run = start(tmp_path / "run", clip, colours, "method.name=advvlp", "train.steps=5")
    rows = metrics(run)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5]
    assert [row["epoch"] for row in rows if "loss" in row] == [0.5, 1, 1.5, 2, 2.5], "passes over the images"
    # validate_every=2 of 3 epochs: two thirds of the steps, and the end.
    assert [row["step"] for row in rows if "val_clean" in row] == [3, 5]
    assert run.manifest["summary"]["steps"] == 5
    assert "5 steps, batch 8" in (run.path / "README.md").read_text()


def test_a_teacher_is_tuned_for_as_many_steps(
    tmp_path: Path, clip: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    epochs = Loop._epochs
    monkeypatch.setattr(Loop, "_epochs", lambda self, *rest: (taken.append(self.steps), epochs(self, *rest))[1])
    data = apd.load_data(colours, shots=2, unlabelled="rest")
    method = {"name": "apd", "teacher": "tuned"}
    apd.train(clip, data, method=method, steps=3, epochs=1, device="cpu", quiet=True, output=tmp_path / "run")
    assert taken == [3, 3]
