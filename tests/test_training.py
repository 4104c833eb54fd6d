"""The loop: it learns, is reproducible, and says what it cannot train."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import apd
from apd.attacks import Objective, ThreatModel, TrainingAttack
from apd.data import load_data
from apd.data.batch import Batch
from apd.errors import ApdError, InputError
from apd.methods import Step
from apd.methods.clean import VLP
from apd.models import DualEncoder
from apd.models.classifier import PromptedCLIP
from apd.models.fast import kernels
from apd.training import process
from apd.training.average import ema_share, update_average
from apd.training.schedule import learning_rate
from apd.training.step import TrainStep

from .command_line import Said
from .refusals import refused
from .training import metrics, same, start


@pytest.mark.parametrize(
    ("method", "kind"), [("apd", "pgd"), ("advvlp", "pgd"), ("advvlp", "free"), ("advvlp", "carried")]
)
def test_training_lowers_the_loss_and_leaves_a_run(
    tmp_path: Path, clip: DualEncoder, colours: Path, method: str, kind: str
) -> None:
    run = start(
        tmp_path / "run",
        clip,
        colours,
        f"method.name={method}",
        f"train.attack.kind={kind}",
        "train.epochs=20",
        "train.optimizer.lr=0.02",
        "train.augment.enabled=false",
    )
    rows = [row for row in metrics(run) if "loss" in row]
    assert sum(r["loss"] for r in rows[-4:]) < 0.8 * sum(r["loss"] for r in rows[:4])
    assert run.finished and {"val_clean", "val_robust", "warnings"} <= set(run.manifest["summary"])
    assert (run.path / "prompts.safetensors").stat().st_size < 20_000


def test_same_seed_same_prompts_and_another_seed_others(tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    runs = [
        start(tmp_path / name, clip, colours, f"train.seed={seed}").load_prompts()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


@pytest.mark.parametrize("native", [True, False])
def test_bf16_keeps_prompts_and_gradients_in_float32(
    tmp_path: Path, clip: DualEncoder, colours: Path, said: Said, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr(kernels, "_MULTIPLIES_BF16", native)
    half = start(tmp_path / "bf16", clip, colours, "train.precision=bf16", "train.optimizer.name=sgd").load_prompts()
    assert native != any("no instructions for bfloat16" in line for line in said())
    told = len(said())
    full = start(tmp_path / "fp32", clip, colours, "train.precision=fp32", "train.optimizer.name=sgd").load_prompts()
    assert not any("bfloat16" in line for line in said()[told:])
    assert all(t.dtype == torch.float32 for t in half.values()) and not same(half, full)
    for name, tensor in half.items():
        assert torch.isfinite(tensor).all()
        assert (tensor - full[name]).norm() < 0.2 * full[name].norm()


def test_weights_that_no_command_loads_again_are_refused(tmp_path: Path, colours: Path) -> None:
    half = apd.load_clip("glyphs", dtype=torch.bfloat16)
    with refused("glyphs", "torch.bfloat16", "float32", "precision='bf16'"):
        apd.train(half, load_data(colours, shots=1), output=tmp_path / "half", epochs=1)
    assert not (tmp_path / "half").exists()


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(s, 100, 10, 0.5) for s in range(100)]
    assert rates[0] == pytest.approx(0.05) and max(rates) == rates[9] == rates[10] == 0.5
    assert rates[55] == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 0.5))) and rates[-1] < 1e-3


def test_the_average_follows_its_definition() -> None:
    average, decay = {"a": torch.tensor([1.0])}, 0.9
    expected = 1.0
    for step, value in enumerate([2.0, 3.0, -1.0]):
        update_average(average, {"a": torch.tensor([value])}, ema_share(step, decay))
        d = min(decay, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * value
    assert float(average["a"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        (lambda ce: ce, ["Tensor"]),
        (lambda ce: None, ["NoneType"]),
        (lambda ce: {}, ["empty"]),
        (lambda ce: {"ce": ce, "more": 0.5}, ["'more'", "float"]),
        (lambda ce: {"ce": ce.expand(2)}, ["'ce'", "(2,)"]),
        (lambda ce: {"ce": ce.detach()}, ["ce", "step.student"]),
    ],
)
def test_what_a_loss_returns_is_checked_and_its_method_named(
    clip: DualEncoder, wrong: Callable[[Tensor], Any], names: list[str]
) -> None:
    class Own(VLP):
        def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
            terms: dict[str, Tensor] = wrong(step.cross_entropy(step.clean_logits()))
            return terms

    method = Own(Own.Settings(), PromptedCLIP(clip, None, ["cat", "dog"]))
    with refused("loss()", "Own", *names, by=ApdError) as error:
        TrainStep(method)(Batch.of(torch.rand(2, 3, 16, 16), torch.tensor([0, 1])), ThreatModel(1 / 255))
    assert error.value.exit_code == 1


class Refusing(TrainingAttack):
    """An attack of somebody's own that finds at the first step what it cannot do."""

    def __call__(self, objective: Objective, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        raise InputError("not these images")


def test_what_the_first_step_refuses_costs_no_finished_run(tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    start(tmp_path / "run", clip, colours)
    files = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    data, options = load_data(colours, shots=4), {"method": "advvlp", "attack": Refusing}
    with refused("not these images"):
        apd.train(clip, data, output=tmp_path / "run", overwrite=True, **options)
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == files


def test_a_process_that_trained_on_one_device_does_not_pretend_to_train_on_another(
    tmp_path: Path, clip: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path / "first", clip, colours, "train.epochs=1")
    monkeypatch.setattr(process, "pick_device", lambda name: "cuda" if name == "cuda" else "cpu")
    with refused("cpu", "train.device=cuda"):
        start(tmp_path / "second", clip, colours, "train.epochs=1", "train.device=cuda")


def test_tensorboard_events_are_written(tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    pytest.importorskip("tensorboard")
    run = start(tmp_path / "run", clip, colours, "train.tensorboard=true")
    assert list((run.path / "tensorboard").glob("events.out.tfevents*"))
