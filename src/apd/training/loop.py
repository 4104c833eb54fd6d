"""The loop: epochs, resume, validation, progress, one or many processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from apd.attacks import Replayed
from apd.attacks.threat import ThreatModel
from apd.data import Dataset
from apd.data.batch import Batch
from apd.errors import InputError
from apd.methods import Method, Preparation, find_method
from apd.methods.base import facts_of, prepare
from apd.models import DualEncoder
from apd.models.calibration import Calibration
from apd.models.classifier import PromptedCLIP, check_distinct
from apd.models.fast.kernels import multiplied_as
from apd.models.parts import within
from apd.runs.config import RunConfig
from apd.runs.folder import Run
from apd.settings.train import OF_UNLABELLED, TEACHER, TrainSettings
from apd.training.average import RunningAverage
from apd.training.batches import Batches, TrainingImages
from apd.training.collapse import CollapseMonitor, Diverged, Validation
from apd.training.log import Log
from apd.training.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from apd.training.process import find_accelerator, interrupts
from apd.training.pseudo_labels import judged_by_teacher, pseudo_labels
from apd.training.schedule import Schedule
from apd.training.sharpness import awp, sam, shifted
from apd.training.step import TrainStep, training_attack
from apd.training.trackers import TENSORBOARD, check_trackers, start_trackers
from apd.training.validation import VALIDATED, look
from apd.util.extras import import_extra
from apd.util.memory import Room
from apd.util.messages import get_logger
from apd.util.progress import Count, Progress

log = get_logger("apd.training")


TEACHER_EPOCHS = 30
"""Epochs, at least, that a teacher is tuned for where there are unlabelled images too: it sees the labelled ones alone,
so its epochs are short."""


def train(encoder: DualEncoder, data: Dataset, images: TrainingImages, config: RunConfig, run: Run) -> Run:
    """Train the method of ``config`` and leave its prompts in ``run``.

    Goes on from the run's checkpoint where there is one, and ends bit-identical, on a CPU, to a run that was never stopped:
    every random draw comes from the seed and the place in training, never from a generator's state.

    Args:
        encoder: the frozen CLIP.
        data: named classes.
        images: its training and validation images.
        config: settings.
        run: folder from `Run.create`.

    Returns:
        The run, finished.

    Raises:
        InputError: a class name longer than the context, impossible prompts.
        ApdError: where training diverges.
        KeyboardInterrupt: after a checkpoint is saved.
    """
    if run.finished:
        log.info(f"{run.path} is finished already; nothing was trained.")
        return run
    try:
        return _train(encoder, data, images, config, run)
    finally:
        run.lock.release()


def _train(encoder: DualEncoder, data: Dataset, images: TrainingImages, config: RunConfig, run: Run) -> Run:
    settings = config.train
    if settings.tensorboard:
        import_extra("tensorboard", "tensorboard", "train.tensorboard")
    check_trackers(settings.trackers, settings.tracker_options)
    accelerator = find_accelerator(settings.device)
    if settings.precision == "bf16" and multiplied_as(torch.bfloat16, accelerator.device) is torch.float32:
        log.info("This CPU has no instructions for bfloat16: train.precision=fp32 takes no longer.")
    encoder = encoder.to(accelerator.device)
    bare = PromptedCLIP(encoder, None, data.class_names, data.templates)
    check_distinct(bare)
    method = find_method(config.method.name)(config.method.settings, bare, settings.seed).to(accelerator.device)
    images = images.to(accelerator.device)
    if not len(images.train):
        images = judged_by_teacher(method, images)
    loop = Loop(method, images, settings, accelerator, run)
    summary = loop.run_through(lambda: prepare(method, loop.preparation()))
    prompts = loop.deployed().prompts
    assert prompts is not None
    run.save_prompts({name: tensor.detach().cpu() for name, tensor in prompts.state_dict().items()})
    run.finish(summary, loop.facts(), loop.calibration())
    accelerator.wait_for_everyone()
    return run if run.writer else Run.open(run.path)


class Loop:
    """Trains one method on decoded images.

    Args:
        method: whose state is trained, saved and restored.
        images: training and validation images.
        settings: the section ``train``.
        accelerator: device and processes.
        run: where metrics and checkpoints go; None: nowhere (a teacher's tuning, repeated if interrupted).
        then: length, in steps of this loop, of the training that follows a teacher's tuning.
    """

    def __init__(
        self,
        method: Method,
        images: TrainingImages,
        settings: TrainSettings,
        accelerator: Accelerator,
        run: Run | None,
        then: float | None = None,
    ) -> None:
        self.method, self.images, self.settings, self.accelerator, self.run = method, images, settings, accelerator, run
        self.then = then
        if settings.eps_per_image and accelerator.num_processes > 1:
            raise InputError(
                f"train.eps_per_image shares eps out within a batch and needs one process, got {accelerator.num_processes}."
            )
        self.batches = Batches(images, settings, accelerator.process_index, accelerator.num_processes)
        self.schedule = Schedule(settings, len(self.batches))
        self.steps = self.schedule.steps
        self.trained = [p for p in method.parameters() if p.requires_grad]
        kind = settings.attack.attack_class
        moving = kind.from_settings(settings.attack) if method.adversarial and kind.moves_with_prompts else None
        self.moving = moving if isinstance(moving, Replayed) else None
        self.replays = self.moving.replays if self.moving else 1
        if self.moving:
            self.batches.hand_over(self.moving, self.schedule.threat(0))
        self.average = RunningAverage(settings, self.steps)
        self.room = Room()
        self.monitor = CollapseMonitor(settings)
        self.summary: dict[str, Any] = {"warnings": []}
        self.terms: dict[str, float] = {}  # as they were logged last
        self.labelled_by: str | None = None
        self.stop = False

    def preparation(self) -> Preparation:
        """What the method may use before its first step."""
        s, images, attack = self.settings, self.images, training_attack(self.settings.attack)
        return Preparation(images.train, attack, s.threat, s.seed, self.tune, images.val, self.batches.pool)

    def facts(self) -> dict[str, Any]:
        """What training has measured and no setting says: of the method, and which teacher gave pseudo-labels."""
        return {**facts_of(self.method), **({"pseudo_labels_by": self.labelled_by} if self.labelled_by else {})}

    def tune(self, method: Method) -> None:
        """Train another method (a teacher) on the labelled images, with the same settings, in place."""
        images = replace(self.images, unlabelled=None)
        settings = self.settings.model_copy(update=dict.fromkeys(OF_UNLABELLED))
        if self.images.unlabelled is not None and settings.steps is None and settings.epochs < TEACHER_EPOCHS:
            settings = settings.model_copy(update={"epochs": TEACHER_EPOCHS})
        Loop(method, images, settings, self.accelerator, None, self._after(method)).run_through(lambda: None)

    def _after(self, teacher: Method) -> float | None:
        """What follows the tuning of a teacher, in steps of it: a clean step is one pass; unknown for another CLIP."""
        if teacher.student.encoder is not self.method.student.encoder:
            return None
        attack = self.settings.attack.attack_class.from_settings(self.settings.attack)
        return self.steps * (1 + (attack.passes if self.method.adversarial else 0))

    def run_through(self, prepare: Callable[[], None]) -> dict[str, Any]:
        """All steps that are left; returns the last validation and what was warned of."""
        with within(self.room):
            return self._run_through(prepare)

    def _run_through(self, prepare: Callable[[], None]) -> dict[str, Any]:
        if not self.trained:
            with closing(Log(self.run, len(self.batches), self._trackers)) as metrics:
                return {**self._report(metrics, 0, self.validate()), "steps": 0}
        optimizer = build_optimizer(self.settings.optimizer, self.trained)
        found = self._restore(optimizer)
        start = found or 0
        if found is None:
            if self.images.unlabelled is not None and self.method.pseudo_labels:
                teacher = self.settings.pseudo_labels or TEACHER
                labels, self.labelled_by = pseudo_labels(
                    self.method, self.preparation(), self.images.unlabelled, teacher
                )
                self.batches.pool = self.batches.pool.with_labels(labels)
            prepare()
            self.average.begin(self.method.student)
        module, optimizer = self.accelerator.prepare(TrainStep(self.method, self.settings), optimizer)
        title = "training" if self.run else "tuning the teacher"
        metrics = Log(self.run, len(self.batches), self._trackers)
        with (
            Progress(title, Count(self.steps, "steps", start, then=self.then), keep=True) as progress,
            interrupts(self),
            closing(metrics),
        ):
            return self._epochs(module, optimizer, start, progress, metrics)

    def _trackers(self) -> list[Any]:
        """Start the trackers that the settings name, in one process only; none for a teacher's tuning."""
        s = self.settings
        if self.run is None or not self.accelerator.is_main_process:
            return []
        names = dict.fromkeys([*([TENSORBOARD] if s.tensorboard else []), *s.trackers])
        return start_trackers(list(names), s.tracker_options, self.run)

    def _epochs(
        self, module: nn.Module, optimizer: Any, start: int, progress: Progress, metrics: Log
    ) -> dict[str, Any]:
        for step in range(start, self.steps, self.replays):
            done = min(step + self.replays, self.steps)
            try:
                terms = self.train_batch(module, optimizer, step, done)
            except Diverged as error:
                self._keep_last_good(step, start, optimizer, error)
                raise
            progress.count.advance(done - step)
            due = partial(self._due, step, done)
            if due(self.settings.log_every):
                self.terms = metrics.terms(terms, done)
                self.monitor.check_loss(self.terms, done)
                progress.status = " ".join(f"{name} {value:.3f}" for name, value in metrics.last.items())
            if self.run and due(self.schedule.validate_every):
                self.summary = {**self._report(metrics, done, self.validate()), "steps": done}
            self._agree_to_stop()
            # Not before the first step: what that one refuses costs no finished work that would be overwritten.
            if step == 0 or due(self.settings.checkpoint_every) or self.stop:
                self._checkpoint(done, optimizer)
            if self.stop and (done < self.steps or self.run is None):
                raise KeyboardInterrupt(*self._how_to_resume(done))
        return self.summary

    def _how_to_resume(self, done: int) -> tuple[str, ...]:
        """What a notebook shows below a stopped cell; nothing where nothing is kept."""
        if self.run is None:
            return ()
        path = str(self.run.path)
        return (f"{done} of {self.steps} steps are kept; the same call with output={path!r}, resume=True continues.",)

    def _keep_last_good(self, step: int, start: int, optimizer: Any, error: Diverged) -> None:
        """Save the state before a step that was not taken; that of an attack that carries images is past it already."""
        if self.run and step > start and self.moving is None:
            self._checkpoint(step, optimizer)
            error.args = (f"{error} The state after step {step} is kept in {self.run.path}.",)

    def _due(self, step: int, done: int, every: int) -> bool:
        """Whether a multiple of ``every`` steps, or the end, was reached since ``step``; a batch may take several steps."""
        return done // every > step // every or done == self.steps

    def _agree_to_stop(self) -> None:
        """Let all processes stop at the same step: one that left alone would leave the others waiting for its gradients."""
        if self.accelerator.num_processes > 1:
            flag = torch.tensor([int(self.stop)], device=self.accelerator.device)
            self.stop = bool(self.accelerator.reduce(flag, "sum").item())

    def train_batch(self, module: nn.Module, optimizer: Any, step: int, done: int) -> dict[str, Tensor]:
        """Take the optimiser steps from ``step`` to before ``done`` on one batch: several of them in free training."""
        batch, moving, s = self.batches.draw(step // self.replays, step), self.moving, self.settings
        if moving:
            moving.begin(batch, self.schedule.threat(step))
        for at in range(step, done):
            threat = self.schedule.threat(at)
            terms, images = self._gradients(module, optimizer, batch, threat)
            if moving:
                moving.climb(batch, threat)
            if s.optimizer.sam or s.optimizer.awp:
                by = sam(self.trained, s.optimizer.sam) if s.optimizer.sam else awp(self.trained, s.optimizer.awp)
                with shifted(self.trained, by):
                    self._gradients(module, optimizer, batch, threat, images)
            self.monitor.check_gradients(terms, self._named_gradients(), at + 1)
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.learning_rate(at)
            if s.optimizer.clip is not None:
                self.accelerator.clip_grad_norm_(self.trained, s.optimizer.clip)
            optimizer.step()
            self.average.update(self.method.student, at)
        return terms

    def _gradients(
        self, module: nn.Module, optimizer: Any, batch: Batch, threat: ThreatModel, x_adv: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Leave the gradients of the loss on one batch; return its terms and the images they were taken on.

        Those are ``x_adv``, or else what the training attack makes.
        """
        # Several processes could not begin again together.
        alone = self.accelerator.num_processes == 1
        for attempt in self.room.attempts(len(batch.x)) if alone else [nullcontext()]:
            with attempt:
                optimizer.zero_grad()
                moved = self.moving.view(batch, threat) if self.moving and x_adv is None else x_adv
                terms, images = module(batch, threat, moved)
                self.accelerator.backward(torch.stack(list(terms.values())).sum() * batch.weight)
        return terms, images

    def _named_gradients(self) -> dict[str, Tensor]:
        return {name: p.grad for name, p in self.method.named_parameters() if p.requires_grad and p.grad is not None}

    def _report(self, metrics: Log, done: int, found: Validation) -> dict[str, Any]:
        attacked = self.schedule.threat(done - 1).eps > 0  # else an adversarial term of 0 says nothing
        record = found.record()
        warnings = self.monitor.check_validation(self.terms if attacked else {}, found)
        metrics.write(
            {"step": done, "epoch": done / len(self.batches), **record, **({"warnings": warnings} if warnings else {})}
        )
        clean, robust = record.values()
        when = f"step {done}" if self.settings.steps else f"epoch {done // len(self.batches)}"
        log.info(
            f"{when}: {'agreement with the teacher' if found.agreement else 'validation'} "
            f"{clean:.1f} % clean, {robust:.1f} % under {self.settings.validation_attack}"
        )
        for warning in warnings:
            log.warning(warning)
        return {**record, "warnings": self.summary["warnings"] + warnings}

    def validate(self) -> Validation:
        """Look at the validation split, clean and under the short attack, with what would be deployed."""
        model, val = self.deployed().frozen(), self.images.val
        for attempt in self.room.attempts(VALIDATED):
            with attempt:
                found = look(model, val, self.settings, self.monitor)
        return replace(found, agreement=not len(self.images.train))

    def calibration(self) -> Calibration | None:
        """Calibrate the probabilities of what is deployed on the validation images; None where those have no labels."""
        val = self.images.val
        if not len(self.images.train) or not len(val):
            return None
        model = self.deployed().frozen()
        with torch.no_grad(), within(self.room):
            logits = [model(val.pixels(slice(at, at + VALIDATED))) for at in range(0, len(val), VALIDATED)]
        return Calibration.fit(torch.cat(logits), val.labels)

    def deployed(self) -> PromptedCLIP:
        """The student that is saved and validated: the running average's where one is kept."""
        return self.average.deployed(self.method.student)

    def _checkpoint(self, done: int, optimizer: Any) -> None:
        if self.run is None:
            return
        self.facts()  # what could not be recorded is told now, and not after the last step
        self.monitor.check_prompts({n: p for n, p in self.method.named_parameters() if p.requires_grad}, done)
        tensors = {f"method.{name}": tensor for name, tensor in self.method.state().items()}
        tensors |= self.moving.state() if self.moving else {}
        known = self.batches.pool.pseudo_labels
        tensors |= {} if known is None else {"pseudo_labels": known}
        tensors |= self.average.state()
        state = {
            "summary": self.summary,
            "terms": self.terms,
            **self.monitor.state(),
            **({"room": self.room.most} if self.room.most else {}),
            **({"labelled_by": self.labelled_by} if self.labelled_by else {}),
        }
        self.run.save_checkpoint(done, {**tensors, **optimizer_tensors(optimizer)}, state)

    def _restore(self, optimizer: torch.optim.Optimizer) -> int | None:
        """Load the run's checkpoint and return the steps done; None without a checkpoint."""
        found = self.run.load_checkpoint() if self.run else None
        if found is None:
            return None
        tensors, state = found
        own = {name.removeprefix("method."): tensor for name, tensor in tensors.items() if name.startswith("method.")}
        if own.keys() != self.method.state().keys():
            raise InputError(
                f"The checkpoint in {self.run.path if self.run else ''} is of another method, or of another version of "
                "apd; start again with --overwrite (Python: overwrite=True)."
            )
        self.method.restore(own)
        if "pseudo_labels" in tensors:
            self.batches.pool = self.batches.pool.with_labels(tensors["pseudo_labels"])
        self.average.restore(tensors, self.accelerator.device)
        load_optimizer_tensors(optimizer, tensors)
        if self.moving:
            self.moving.restore(tensors)
        self.summary, self.room.most = state["summary"], state.get("room")
        self.labelled_by, self.terms = state.get("labelled_by"), state.get("terms", {})
        self.monitor.load(state)
        return int(state["step"])
