"""Short trainings of a small random CLIP on three colours, in this process or in others."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

import apd
from apd.data import load_data
from apd.models import DualEncoder, load_clip
from apd.runs.config import RunConfig, load_config
from apd.runs.folder import Run
from apd.runs.load import describe_encoder
from apd.training import loop
from apd.training.average import RunningAverage
from apd.training.batches import decode
from apd.training.loop import train

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

PLAIN = (
    "method.name=advvlp",
    "train.augment.enabled=false",
    "train.optimizer.name=sgd",
    "train.optimizer.momentum=0",
    "train.optimizer.clip=null",
    "train.optimizer.lr=0.05",
)
"""Plain SGD on images as they are, which a slow loop can follow."""


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


def train_in_process(
    path: Path, clip_folder: Path, colours: Path, sets: Sequence[str], end: tuple[int, float] | None = None
) -> None:
    """Start or resume a run; for a process of its own.

    Args:
        path: the run folder.
        clip_folder: the CLIP model.
        colours: the data.
        sets: settings.
        end: a step, and how many seconds of CPU time after it the process is killed, by SIGPROF; None: it is not.
    """
    if end is not None:
        log, (step, seconds) = Run.log, end

        def log_then_wait(self: Run, record: Mapping[str, Any]) -> None:
            log(self, record)
            if record["step"] >= step and not signal.getitimer(signal.ITIMER_PROF)[0]:
                signal.setitimer(signal.ITIMER_PROF, seconds)

        Run.log = log_then_wait  # type: ignore[method-assign]
    start(path, load_clip(clip_folder), colours, *sets, resume=True)


def keep_gradients(folder: Path, clip_folder: Path, colours: Path, launcher: Mapping[str, str]) -> None:
    """Train three times, and write each step's gradients to a file; for a process of its own.

    The default, a loss of features alone, which gives text tokens none, then free with AWP; batches of 7 and a last one of 5, so
    that the shares of two processes differ in size.

    Args:
        folder: where to write.
        launcher: environment variables that a launcher of several processes sets for this one.
    """
    os.environ.update(launcher, ACCELERATE_USE_CPU="true")
    gradients: list[Tensor] = []
    loops: list[loop.Loop] = []
    update, run_through = RunningAverage.update, loop.Loop.run_through

    def keep(*arguments: Any) -> None:
        update(*arguments)
        gradients.append(torch.cat([p.grad.flatten() for p in loops[-1].trained if p.grad is not None]))

    def remember(self: loop.Loop, *arguments: Any) -> Any:
        loops.append(self)
        return run_through(self, *arguments)

    RunningAverage.update, loop.Loop.run_through = keep, remember  # type: ignore[method-assign]
    rank, clip = PartialState(cpu=True).process_index, load_clip(clip_folder)
    sets = ["train.ema=0.5", "method.teacher=frozen", "train.batch_size=7"]
    start(folder / f"run{rank}", clip, colours, *sets)
    alone = ["method.adv_ce=0", "method.adv_kl=0", "method.image_features=1", "method.inner=features"]
    start(folder / f"features{rank}", clip, colours, *sets, *alone)
    sets += ["train.attack.kind=free", "train.attack.replays=2", "train.optimizer.awp=0.01"]
    start(folder / f"free{rank}", clip, colours, *sets)
    RunningAverage.update = update  # type: ignore[method-assign]
    shared = apd.train(clip, load_data(colours), method="advvlp", steps=1, output=folder / "shared", quiet=True)
    assert shared.finished and shared.load_prompts(), "every process gets the run that the first one has written"
    torch.save(gradients, folder / f"gradients{rank}.pt")


def weights(step: int) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint, one of them empty."""
    return {"w": torch.full((100,), float(step)), "none": torch.empty(0)}
