"""The loop: it learns, resumes bit-identically, gives the same gradients on two processes, and notices collapse."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import apd
from apd.attacks import ThreatModel
from apd.data import load_data
from apd.data.batch import Batch
from apd.errors import ApdError, InputError
from apd.methods import Method, Step
from apd.methods.clean import VLP
from apd.models import DualEncoder
from apd.models.classifier import PromptedCLIP
from apd.runs.config import RunConfig, load_config
from apd.runs.folder import Run
from apd.runs.load import describe_encoder
from apd.settings.train import TrainSettings
from apd.training import loop
from apd.training.batches import decode
from apd.training.collapse import CollapseMonitor, Validation
from apd.training.log import Log
from apd.training.loop import train
from apd.training.optim import ema_share, learning_rate, update_average
from apd.training.step import TrainStep

FAST = [
    "train.epochs=3",
    "train.batch_size=8",
    "train.eps=4/255",
    "train.validate_every=2",
    "train.checkpoint_every=2",
    "train.log_every=1",
    "method.prompts.text_tokens=2",
    "method.prompts.visual_tokens=2",
]


def settings(clip: DualEncoder, colours: Path, *sets: str) -> RunConfig:
    flags = {"model": clip.info.source, "data.source": str(colours), "data.shots": 4}
    return load_config(flags=flags, sets=[*FAST, *sets])


def start(path: Path, clip: DualEncoder, colours: Path, *sets: str, resume: bool = False) -> Run:
    config = settings(clip, colours, *sets)
    data = load_data(colours, shots=4, seed=0)
    manifest = {
        "model": describe_encoder(clip.info),
        "data": {"name": data.name},
        "class_names": data.class_names,
        "templates": data.templates,
        "prompts": config.method.settings.prompts.model_dump(mode="json"),
        "seeds": {"train": 0, "data": 0},
        "versions": {},
    }
    run = Run.create(path, config, manifest, resume=resume)
    return train(clip, data, decode(clip, data, skip_bad=False, show=False), config, run)


def metrics(run: Run) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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


@pytest.mark.parametrize(
    "extra",
    [
        ("method.teacher=tuned", "train.ema=0.9"),
        ("method.teacher=online", "train.ema=0.9", "train.optimizer.name=sgd"),
        ("train.swa=0.7", "train.optimizer.sam=0.05", "train.eps_warmup_epochs=2"),
        ("method.name=advvlp", "train.optimizer.awp=0.01", "train.attack.kind=n-fgsm", "train.label_smoothing=0.1"),
        ("train.attack.loss=margin", "train.attack.stop_margin=0.5", "train.attack.steps=3"),
        ("train.attack.kind=free", "train.attack.replays=3", "train.epochs=4"),
        ("train.attack.kind=carried", "train.epochs=4"),
    ],
    ids=lambda extra: "-".join(part.split(".")[-1] for part in extra),
)
def test_an_interrupted_run_resumes_bit_identical(
    tmp_path: Path, clip: DualEncoder, colours: Path, extra: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = start(tmp_path / "whole", clip, colours, *extra)

    saves, log, save = [], Run.log, Run.save_checkpoint
    monkeypatch.setattr(Run, "save_checkpoint", lambda self, step, *rest: (saves.append(step), save(self, step, *rest)))

    def interrupt(self: Run, record: dict[str, float]) -> None:
        log(self, record)
        if record["step"] == 3 and "loss" in record:
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C in the middle of a step: answered at its end

    monkeypatch.setattr(Run, "log", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "broken", clip, colours, *extra)
    assert saves == ([3] if "train.attack.kind=free" in extra else [1, 2, 3])
    monkeypatch.undo()
    resumed = start(tmp_path / "broken", clip, colours, *extra, resume=True)
    assert same(whole.load_prompts(), resumed.load_prompts())
    assert resumed.manifest["facts"] == whole.manifest["facts"], "a balance that is measured once"
    without_time = [[{k: v for k, v in row.items() if k != "seconds"} for row in metrics(r)] for r in (whole, resumed)]
    assert without_time[0] == without_time[1]


def test_a_crash_after_the_first_step_does_not_tune_the_teacher_twice(
    tmp_path: Path, clip: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = ("method.teacher=tuned", "train.checkpoint_every=100")
    whole, log = start(tmp_path / "whole", clip, colours, *extra), Run.log

    def crash(self: Run, record: dict[str, float]) -> None:
        log(self, record)
        if record["step"] == 2:
            raise RuntimeError("power cut")

    monkeypatch.setattr(Run, "log", crash)
    with pytest.raises(RuntimeError):
        start(tmp_path / "broken", clip, colours, *extra)
    monkeypatch.undo()
    monkeypatch.setattr(loop.Loop, "tune", lambda *_: pytest.fail("tuned twice"))
    resumed = start(tmp_path / "broken", clip, colours, *extra, resume=True)
    assert same(whole.load_prompts(), resumed.load_prompts())


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from apd.models import load_clip
from tests.test_training import start
start(Path(sys.argv[1]), load_clip(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:], resume=True)
"""


def test_killed_five_times_at_random_steps_it_ends_bit_identical(
    tmp_path: Path, clip: DualEncoder, clip_folder: Path, colours: Path
) -> None:
    extra = ["train.epochs=60", "train.checkpoint_every=1", "train.validate_every=20", "method.teacher=online"]
    whole = start(tmp_path / "whole", clip, colours, *extra)
    broken, rng = tmp_path / "broken", torch.Generator().manual_seed(0)
    command = [sys.executable, "-c", SCRIPT, str(broken), str(clip_folder), str(colours), *extra]
    steps, killed_at = 120, []
    for number in range(5):
        process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL)
        low = steps * number // 6
        target = low + 1 + int(torch.randint(0, steps // 6 - 1, (), generator=rng))
        while _logged(broken) < target and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
        killed_at.append(_logged(broken))
    assert killed_at == sorted(killed_at) and killed_at[-1] < steps
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True)
    assert same(whole.load_prompts(), Run.open(broken).load_prompts())


def _logged(path: Path) -> int:
    file = path / "metrics.jsonl"
    return file.read_bytes().count(b'"loss"') if file.exists() else 0


DISTRIBUTED = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
import torch.nn as nn
import apd.training.loop as loop
from apd.models import load_clip
from tests.test_training import start

gradients = []
original = loop.update_average

def record(average, current, share):
    original(average, current, share)
    gradients.append(torch.cat([p.grad.flatten() for p in recorded[0].trained]))

recorded = []
run_through = loop.Loop.run_through

def keep(self, prepare):
    recorded[:] = [self]
    return run_through(self, prepare)

loop.update_average, loop.Loop.run_through = record, keep
from accelerate import PartialState
state = PartialState(cpu=True)
clip = load_clip(sys.argv[2])
sets = ["train.ema=0.5", "method.teacher=frozen", "train.batch_size=7"]
start(Path(sys.argv[1]) / f"run{state.process_index}", clip, Path(sys.argv[3]), *sets)
sets += ["train.attack.kind=free", "train.attack.replays=2", "train.optimizer.awp=0.01"]
start(Path(sys.argv[1]) / f"free{state.process_index}", clip, Path(sys.argv[3]), *sets)
torch.save(gradients, Path(sys.argv[1]) / f"gradients{state.process_index}.pt")
"""


def test_two_processes_give_the_gradients_of_one(tmp_path: Path, clip_folder: Path, colours: Path) -> None:
    """Batches of 7 and a last one of 5: the shares of the two processes differ in size. The default, then free with AWP."""
    script = tmp_path / "script.py"
    script.write_text(DISTRIBUTED)
    root = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    for name, launcher in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29511"]),
    ):
        (tmp_path / name).mkdir()
        command = [sys.executable, *launcher, str(script), str(tmp_path / name), str(clip_folder), str(colours)]
        subprocess.run(
            command, cwd=root, check=True, env={**environment, "ACCELERATE_USE_CPU": "true"}, capture_output=True
        )
    one, left, right = (
        torch.load(tmp_path / name, weights_only=True)
        for name in ("one/gradients0.pt", "two/gradients0.pt", "two/gradients1.pt")
    )
    assert len(one) == len(left) == 6 + 6
    for single, a, b in zip(one, left, right, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, single, rtol=1e-3, atol=1e-6)


def test_bf16_keeps_prompts_and_gradients_in_float32(tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    half = start(tmp_path / "bf16", clip, colours, "train.precision=bf16", "train.optimizer.name=sgd").load_prompts()
    full = start(tmp_path / "fp32", clip, colours, "train.precision=fp32", "train.optimizer.name=sgd").load_prompts()
    assert all(t.dtype == torch.float32 for t in half.values()) and not same(half, full)
    for name, tensor in half.items():
        assert torch.isfinite(tensor).all()
        assert (tensor - full[name]).norm() < 0.2 * full[name].norm()


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
        ({}, "fp32", "Lower train.optimizer.lr."),
        ({"clip": 0.5}, "bf16", "Lower train.optimizer.lr, or set train.precision=fp32."),
        ({"clip": None}, "fp32", "Lower train.optimizer.lr, or set train.optimizer.clip=1."),
        (
            {"clip": 5},
            "bf16",
            "Lower train.optimizer.lr, or set train.optimizer.clip=1, or set train.precision=fp32.",
        ),
    ],
)
def test_divergence_is_explained_without_advice_that_is_followed_already(
    optimizer: dict[str, Any], precision: str, advice: str
) -> None:
    monitor = CollapseMonitor(TrainSettings.model_validate({"optimizer": optimizer, "precision": precision}))
    monitor.check_loss({"adv_ce": 2.0}, 7)
    with pytest.raises(ApdError) as error:
        monitor.check_loss({"clean_ce": 1.0, "adv_ce": math.nan}, 7)
    assert str(error.value) == f"Training diverged: the term adv_ce is nan at step 7. {advice}"
    with pytest.raises(ApdError) as error:
        monitor.check_logits(torch.tensor([1.0, math.inf]))
    assert str(error.value) == f"Training diverged: the logits of validation images are not finite. {advice}"
    with pytest.raises(
        ApdError, match="The term adv_ce is inf in the first step, before anything was learned"
    ) as error:
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
    with pytest.raises(ApdError, match="The term clean_ce is nan in the first step"):
        start(tmp_path / "run", clip, colours, "method=vlp", "train.log_every=10")
    assert len(steps) == 1


SCALARS = r"loss\(\) of Own must return named terms \(a dict of scalars\)"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda ce: ce, f"{SCALARS}, got Tensor"),
        (lambda ce: None, f"{SCALARS}, got NoneType"),
        (lambda ce: {}, f"{SCALARS}, got an empty one"),
        (lambda ce: {"ce": ce, "more": 0.5}, f"{SCALARS}, got float for 'more'"),
        (lambda ce: {"ce": ce.expand(2)}, rf"{SCALARS}, got the shape \(2,\) for 'ce'; take its mean"),
        (lambda ce: {"ce": ce.detach()}, f"{SCALARS} that depend on step.student, but no gradient of ce reaches"),
    ],
)
def test_what_a_loss_returns_is_checked_and_its_method_named(
    clip: DualEncoder, wrong: Callable[[Tensor], Any], message: str
) -> None:
    class Own(VLP):
        def loss(self, step: Step, x_adv: Tensor) -> dict[str, Tensor]:
            terms: dict[str, Tensor] = wrong(step.cross_entropy(step.clean_logits()))
            return terms

    method = Own(Own.Settings(), PromptedCLIP(clip, None, ["cat", "dog"]))
    with pytest.raises(ApdError, match=message) as error:
        TrainStep(method)(Batch.of(torch.rand(2, 3, 16, 16), torch.tensor([0, 1])), ThreatModel(1 / 255))
    assert error.value.exit_code == 1


DIVERGING = (
    "train.optimizer.lr=1e38",
    "train.optimizer.clip=null",
    "train.optimizer.name=sgd",
    "train.warmup_epochs=0",
)


def test_a_run_whose_last_step_diverges_does_not_finish(tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    """One step only: its loss is finite, and so are the prompts, but what the tower makes of them is not."""
    with pytest.raises(ApdError, match="Training diverged: the logits of validation images are not finite"):
        start(tmp_path / "run", clip, colours, *DIVERGING, "train.epochs=1", "train.batch_size=12")
    assert not Run.open(tmp_path / "run", finished=False).finished
    assert not (tmp_path / "run" / "prompts.safetensors").exists()


def test_divergence_stops_training_and_keeps_the_checkpoint(tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    with pytest.raises(ApdError, match="Training diverged: the term adv_ce is nan at step 2"):
        start(tmp_path / "run", clip, colours, *DIVERGING)
    assert Run.open(tmp_path / "run", finished=False).load_checkpoint() is not None


def test_what_the_first_step_refuses_costs_no_finished_run(tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    start(tmp_path / "run", clip, colours)
    files = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    data, method = load_data(colours, shots=4), {"name": "apd", "variant": "rslad", "prompts": {"text_tokens": 2}}
    with pytest.raises(InputError, match="can replace a cross-entropy only"):
        apd.train(clip, data, method=method, output=tmp_path / "run", overwrite=True, attack={"loss": "margin"})
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == files


def test_ctrl_c_in_the_last_step_of_the_teacher_is_not_lost(
    tmp_path: Path, clip: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = Log.terms

    def interrupt(self: Log, values: dict[str, Tensor], done: int) -> dict[str, float]:
        if self.run is None and done == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return terms(self, values, done)

    monkeypatch.setattr(Log, "terms", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "run", clip, colours, "method.teacher=tuned")
    assert not (tmp_path / "run").exists()


def test_a_process_that_trained_on_one_device_does_not_pretend_to_train_on_another(
    tmp_path: Path, clip: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path / "first", clip, colours, "train.epochs=1")
    monkeypatch.setattr(loop, "pick_device", lambda name: "cuda" if name == "cuda" else "cpu")
    with pytest.raises(InputError, match="has trained on cpu and cannot switch to cuda"):
        start(tmp_path / "second", clip, colours, "train.epochs=1", "train.device=cuda")


def test_tensorboard_events_are_written(tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    pytest.importorskip("tensorboard")
    run = start(tmp_path / "run", clip, colours, "train.tensorboard=true")
    assert list((run.path / "tensorboard").glob("events.out.tfevents*"))
