"""The loop: epochs, resume, validation, progress, one or many processes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from apd.attacks import find, sample_seeds
from apd.classifier import PromptedCLIP
from apd.clip import DualEncoder
from apd.config import RunConfig
from apd.data import Dataset
from apd.data.augment import random_resized_crop_flip
from apd.data.dataset import Decoded, shuffled
from apd.device import pick_device
from apd.errors import InputError
from apd.methods import Method, Preparation, find_method
from apd.run import Run
from apd.training.monitor import CollapseMonitor, TrainingProgress
from apd.training.optim import build_optimizer, learning_rate, load_optimizer_tensors, optimizer_tensors, update_average
from apd.training.settings import TrainSettings
from apd.training.step import TrainStep, training_attack


def train(encoder: DualEncoder, data: Dataset, config: RunConfig, run: Run, *, quiet: bool = False) -> Run:
    """Train the method of ``config`` and leave its prompts in ``run``.

    Goes on from the run's checkpoint where there is one, and ends bit-identical to a run that was never stopped: every
    random draw comes from the seed and the place in training, never from a generator's state.

    Args:
        encoder: the frozen CLIP.
        data: named classes with training and validation images.
        config: settings.
        run: folder from `Run.create`.
        quiet: show nothing.

    Returns:
        ``run``, finished.

    Raises:
        InputError: unreadable images, a class name longer than the context, impossible prompts.
        ApdError: where training diverges.
        KeyboardInterrupt: after a checkpoint is saved.
    """
    if run.finished:
        return run
    settings = config.train
    accelerator = _accelerator(settings.device)
    encoder = encoder.to(accelerator.device)
    bare = PromptedCLIP(encoder, None, data.class_names, data.templates)
    method = find_method(config.method.name)(config.method.settings, bare, settings.seed).to(accelerator.device)
    show = accelerator.is_main_process and not quiet
    images = _decode(encoder, data, config.data.skip_bad_images, show)
    loop = Loop(method, images, settings, accelerator, run, show)
    if method.learns and not loop.trained:
        raise InputError(
            f"Method {config.method.name} has nothing to learn with these prompts: give it text tokens, visual tokens or a "
            "frame; zero-shot is the method without any."
        )
    summary = loop.run_through(lambda: method.prepare(loop.preparation()))
    prompts = loop.deployed().prompts
    assert prompts is not None
    run.save_prompts({name: tensor.detach().cpu() for name, tensor in prompts.state_dict().items()})
    run.finish(summary)
    accelerator.wait_for_everyone()
    return run


def _accelerator(name: str) -> Accelerator:
    device = torch.device(pick_device(name))
    if device.index is not None:
        torch.cuda.set_device(device)
    return Accelerator(cpu=device.type == "cpu")


@dataclass(frozen=True)
class Images:
    """Training and validation images, decoded once and kept as bytes on the device."""

    train: Decoded
    val: Decoded
    size: int
    mirror: bool


def _decode(encoder: DualEncoder, data: Dataset, skip_bad: bool, show: bool) -> Images:
    def split(name: Any) -> Decoded:
        decoded = data.split(name).decode(encoder.info.preprocessing, skip_bad=skip_bad, progress=show)
        return Decoded(
            decoded.images.to(encoder.device), decoded.labels.to(encoder.device), decoded.ids, decoded.skipped
        )

    return Images(split("train"), split("val"), encoder.info.image_size, data.mirror)


class Loop:
    """Trains one method on decoded images.

    Args:
        method: whose state is trained, saved and restored.
        images: training and validation images.
        settings: of the loop.
        accelerator: device and processes.
        run: where metrics and checkpoints go; None: nowhere (a teacher's tuning, repeated if interrupted).
        show: progress on standard error.
    """

    def __init__(
        self,
        method: Method,
        images: Images,
        settings: TrainSettings,
        accelerator: Accelerator,
        run: Run | None,
        show: bool,
    ) -> None:
        self.method, self.images, self.settings, self.accelerator, self.run, self.show = (
            method,
            images,
            settings,
            accelerator,
            run,
            show,
        )
        # A batch smaller than the number of processes would leave one of them without images.
        n, size = len(images.train), settings.batch_size
        self.batches = [range(start, min(start + size, n)) for start in range(0, n, size)]
        self.batches = [batch for batch in self.batches if len(batch) >= accelerator.num_processes]
        self.steps = len(self.batches) * settings.epochs
        self.trained = [p for p in method.parameters() if p.requires_grad]
        self.average: dict[str, Tensor] = {}
        self.monitor = CollapseMonitor()
        self.summary: dict[str, Any] = {"warnings": []}
        self.stop = False

    def preparation(self) -> Preparation:
        """What the method may use before its first step."""
        s = self.settings
        return Preparation(self.images.train, training_attack(s.attack), s.threat, s.seed, self.tune)

    def tune(self, method: Method) -> None:
        """Train another method (a teacher) on the same images, with the same settings, in place."""
        Loop(method, self.images, self.settings, self.accelerator, None, self.show).run_through(lambda: None)

    def run_through(self, prepare: Any) -> dict[str, Any]:
        """All steps that are left; returns the last validation and what was warned of."""
        if not self.trained:
            with TrainingProgress(0, 0, "validation", self.show) as progress:
                return {**self._validate(_Log(self), progress, 0), "steps": 0}
        optimizer = build_optimizer(self.settings.optimizer, self.trained)
        found = self._restore(optimizer)
        start = found or 0
        if found is None:
            prepare()
            if self.settings.ema:
                self.average = {name: tensor.detach().clone() for name, tensor in self._student_state().items()}
            self._checkpoint(0, optimizer)
        module = TrainStep(
            self.method, training_attack(self.settings.attack), self.settings.threat, self.settings.precision == "bf16"
        )
        module, optimizer = self.accelerator.prepare(module, optimizer)
        title = "training" if self.run else "tuning the teacher"
        with TrainingProgress(self.steps, start, title, self.show) as progress, _interrupts(self):
            return self._epochs(module, optimizer, start, progress)

    def _epochs(self, module: nn.Module, optimizer: Any, start: int, progress: TrainingProgress) -> dict[str, Any]:
        log = _Log(self)
        for step in range(start, self.steps):
            epoch, index = divmod(step, len(self.batches))
            if index == 0 or step == start:
                order = shuffled(self.images.train.ids, self.settings.seed, "order", epoch)
            terms = self._step(module, optimizer, step, [order[i] for i in self.batches[index]])
            progress.advance()
            done = step + 1
            if done % self.settings.log_every == 0 or done == self.steps:
                self.monitor.check_loss(log.terms(terms, done), done)
                progress.show(log.last)
            if (
                index == len(self.batches) - 1
                and self.run
                and ((epoch + 1) % self.settings.validate_every == 0 or done == self.steps)
            ):
                self.summary = {**self._validate(log, progress, done), "steps": done}
            self._agree_to_stop()
            if done % self.settings.checkpoint_every == 0 or done == self.steps or self.stop:
                self._checkpoint(done, optimizer)
            if self.stop and done < self.steps:
                raise KeyboardInterrupt
        return self.summary

    def _agree_to_stop(self) -> None:
        """Let all processes stop at the same step: one that left alone would leave the others waiting for its gradients."""
        if self.accelerator.num_processes > 1:
            flag = torch.tensor([int(self.stop)], device=self.accelerator.device)
            self.stop = bool(self.accelerator.reduce(flag, "sum").item())

    def _step(self, module: nn.Module, optimizer: Any, step: int, chosen: list[int]) -> dict[str, Tensor]:
        s, world = self.settings, self.accelerator.num_processes
        mine = chosen[self.accelerator.process_index :: world]
        ids = [self.images.train.ids[i] for i in mine]
        device = self.images.train.images.device
        where = torch.tensor(mine, device=device)
        x = self._augmented(where, ids, step)
        seeds = sample_seeds(ids, s.seed, "start", step)
        terms: dict[str, Tensor] = module(x, self.images.train.labels[where], seeds, index=where)
        # Processes average their gradients; this makes it the mean over all images where the shares differ in size.
        loss = torch.stack(list(terms.values())).sum() * (len(mine) * world / len(chosen))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, self.steps, round(s.warmup_epochs * len(self.batches)), s.optimizer.lr)
        optimizer.zero_grad()
        self.accelerator.backward(loss)
        if s.optimizer.clip is not None:
            self.accelerator.clip_grad_norm_(self.trained, s.optimizer.clip)
        optimizer.step()
        if self.average:
            update_average(self.average, self._student_state(), s.ema, step)
        return terms

    def _augmented(self, index: Tensor, ids: list[str], step: int) -> Tensor:
        augment, x = self.settings.augment, self.images.train.pixels(index)
        if not augment.enabled:
            return x
        mirror = self.images.mirror if augment.flip is None else augment.flip
        seeds = sample_seeds(ids, self.settings.seed, "crop", step)
        return random_resized_crop_flip(x, seeds, size=self.images.size, scale=augment.scale, mirror=mirror)

    def _validate(self, log: _Log, progress: TrainingProgress, done: int) -> dict[str, Any]:
        record = self.validate()
        warnings = self.monitor.check_validation(
            log.last_terms,
            record["val_clean"],
            record["val_robust"],
            record.pop("largest_share"),
            len(self.method.student.class_names),
        )
        log.write(
            {"step": done, "epoch": done / len(self.batches), **record, **({"warnings": warnings} if warnings else {})}
        )
        progress.say(
            f"epoch {done // len(self.batches)}: validation {record['val_clean']:.1f} % clean, "
            f"{record['val_robust']:.1f} % under {self.settings.validation_attack}"
        )
        for warning in warnings:
            progress.say(warning, warning=True)
        return {**record, "warnings": self.summary["warnings"] + warnings}

    def validate(self) -> dict[str, float]:
        """Accuracy in percent on the validation split, clean and under the short attack, of what would be deployed."""
        model, val, s = self.deployed().frozen(), self.images.val, self.settings
        attack, right, robust = find(s.validation_attack), 0, 0
        counts = torch.zeros(len(self.method.student.class_names), device=val.images.device)
        for start in range(0, len(val), 256):
            index = torch.arange(start, min(start + 256, len(val)), device=val.images.device)
            x, labels, ids = val.pixels(index), val.labels[index], [val.ids[i] for i in index.tolist()]
            with torch.no_grad():
                predicted = model(x).argmax(dim=1)
            counts += predicted.bincount(minlength=len(counts))
            keep = (predicted == labels).nonzero().flatten()
            right += len(keep)
            if len(keep):
                found = attack(model, x[keep], labels[keep], s.threat, [ids[i] for i in keep.tolist()], s.seed)
                with torch.no_grad():
                    robust += int((model(found.images).argmax(dim=1) == labels[keep]).sum())
        n = max(1, len(val))
        return {"val_clean": 100 * right / n, "val_robust": 100 * robust / n, "largest_share": float(counts.max()) / n}

    def deployed(self) -> PromptedCLIP:
        """The student that is saved and validated: the running average's where one is kept."""
        student = self.method.student
        if not self.average or student.prompts is None:
            return student
        prompts = type(student.prompts).from_tensors(student.prompts.spec, student.encoder.info, self.average)
        return PromptedCLIP(student.encoder, prompts.to(student.encoder.device), student.class_names, student.templates)

    def _student_state(self) -> dict[str, Tensor]:
        prompts = self.method.student.prompts
        return prompts.state_dict() if prompts is not None else {}

    def _checkpoint(self, done: int, optimizer: Any) -> None:
        if self.run is None:
            return
        tensors = {f"method.{name}": tensor for name, tensor in self.method.state().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        state = {"summary": self.summary, "best_robust": self.monitor.best_robust}
        self.run.save_checkpoint(done, {**tensors, **optimizer_tensors(optimizer)}, state)

    def _restore(self, optimizer: torch.optim.Optimizer) -> int | None:
        """Load the run's checkpoint; returns the steps done, None where there is no checkpoint."""
        found = self.run.load_checkpoint() if self.run else None
        if found is None:
            return None
        tensors, state = found
        own = {name.removeprefix("method."): tensor for name, tensor in tensors.items() if name.startswith("method.")}
        if own.keys() != self.method.state().keys():
            raise InputError(
                f"The checkpoint in {self.run.path if self.run else ''} is of another method; start again with --overwrite."
            )
        self.method.restore(own)
        self.average = {
            name.removeprefix("average."): tensor.to(self.accelerator.device)
            for name, tensor in tensors.items()
            if name.startswith("average.")
        }
        load_optimizer_tensors(optimizer, tensors)
        self.summary, self.monitor.best_robust = state["summary"], state["best_robust"]
        return int(state["step"])


class _Log:
    """Lines of ``metrics.jsonl`` (and TensorBoard, if asked)."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.started = loop, time.monotonic()
        self.last: dict[str, float] = {}
        self.last_terms: dict[str, float] = {}
        self.board: Any = None
        if loop.settings.tensorboard and loop.run and loop.accelerator.is_main_process:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(loop.run.path / "tensorboard"))

    def terms(self, terms: dict[str, Tensor], done: int) -> dict[str, float]:
        """Write a line with the loss terms (this process's share of the batch)."""
        self.last_terms = {name: float(value.detach()) for name, value in terms.items()}
        self.last = {"loss": sum(self.last_terms.values()), **self.last_terms}
        self.write(
            {
                "step": done,
                "epoch": done / len(self.loop.batches),
                **self.last,
                "seconds": time.monotonic() - self.started,
            }
        )
        return self.last_terms

    def write(self, record: dict[str, Any]) -> None:
        """Write a line."""
        if self.loop.run:
            self.loop.run.log(record)
        if self.board is not None:
            for name, value in record.items():
                if isinstance(value, float):
                    self.board.add_scalar(name, value, record["step"])
            self.board.flush()


@contextmanager
def _interrupts(loop: Loop) -> Iterator[None]:
    """Let Ctrl-C wait for the end of a step, so that the checkpoint is of a whole step; a second one does not wait."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(*_: object) -> None:
        if loop.stop:
            raise KeyboardInterrupt
        loop.stop = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
