"""What can be set about training; `apd.runs.config` composes it with model, data and method."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from apd.attacks.settings import AttackSettings
from apd.attacks.threat import EpsText, Norm, ThreatModel, parse_eps
from apd.util.section import RECORDED, GrowingSection, Section
from apd.util.seed_range import Seed

ChosenTeacher = Literal["auto", "probe", "best"]
"""Teachers that are chosen on validation images; `apd.methods.teachers` says among which."""
TEACHER: ChosenTeacher = "best"
"""The one that teaches and labels unlabelled images, unless another is asked for."""

OF_UNLABELLED = ("labelled_share", "pseudo_labels")
"""Settings about unlabelled images beside labelled ones; null where nothing is set."""


class OptimizerSettings(Section):
    """How prompts are updated."""

    name: Literal["sgd", "adamw", "radam"] = Field(
        "adamw", description="sgd (with momentum), adamw or radam (Liu 2020)"
    )
    lr: float = Field(0.003, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0, description="decoupled for adamw and radam")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd")
    clip: float | None = Field(
        1.0, gt=0, description="largest norm of the gradient over all prompts; null: no clipping"
    )
    sam: float = Field(0.0, ge=0, description="SAM: length of the ascent over all prompts (Foret 2021: 0.05); 0: off")
    awp: float = Field(
        0.0, ge=0, description="AWP: ascent of each tensor relative to its norm (Wu 2020: 0.005); 0: off"
    )

    @model_validator(mode="after")
    def _one_ascent(self) -> OptimizerSettings:
        if self.sam and self.awp:
            raise ValueError("train.optimizer.sam and awp cannot be combined; set one of them to 0")
        return self


class AugmentSettings(Section):
    """Random resized crop and flip of training images."""

    enabled: bool = Field(True, description="off: training images stay as decoded")
    scale: tuple[float, float] = Field((0.6, 1.0), description="share of the area that a crop keeps")
    flip: bool | None = Field(None, description="mirror half of the images; null: as the data set says")

    @field_validator("scale")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise ValueError(f"augment.scale must be 0 < low <= high <= 1, got {value}")
        return value


class TrainSettings(GrowingSection):
    """Everything about the loop that is not model, data or method."""

    unrecorded: ClassVar[dict[str, Any]] = {
        "steps": None,
        "eps_warmup_wait": 0.0,
        "eps_per_image": False,
        "labelled_share": None,
        "pseudo_labels": None,
        "trackers": [],
        "tracker_options": {},
    }

    eps: EpsText = Field("1/255", description="training budget in [0,1] pixel units, as a fraction or a float")
    norm: Norm = Field("linf", description="linf, l2 or l1")
    attack: AttackSettings = AttackSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    augment: AugmentSettings = AugmentSettings()
    epochs: int = Field(
        30, ge=1, description="passes over the training images; with attack.kind=free replays count as passes"
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="optimiser steps in all, however many passes they make; settings in epochs then count the share 1/epochs of "
        "them each; null: as many as epochs passes take",
    )
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up; a cosine to zero follows")
    batch_size: int = Field(32, ge=1, description="images per optimiser step, over all processes")
    labelled_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of labelled images in every batch, if there are so many; an epoch is a pass over the unlabelled ones; "
        "null: as they come",
    )
    pseudo_labels: ChosenTeacher | None = Field(
        None,
        description="which teacher labels unlabelled images for methods whose loss needs labels: best, auto or probe, chosen as "
        "method.teacher of apd is; null: best",
    )
    eps_warmup_epochs: float = Field(0.0, ge=0, description="epochs over which eps grows linearly; 0: eps throughout")
    eps_warmup_from: float = Field(0.0, ge=0, le=1, description="share of eps at which its growth starts")
    eps_warmup_wait: float = Field(0.0, ge=0, description="epochs on clean images (eps 0) before its growth starts")
    eps_per_image: bool = Field(
        False, description="share the batch's eps out, more to images whose loss is flat: 0.5 to 1.5 times eps each"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="in the cross-entropy terms of the outer loss; 0: off")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the running average of prompts that is deployed; 0: off")
    swa: float = Field(0.0, ge=0, le=1, description="last share of the steps whose prompts' mean is deployed; 0: off")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast with float32 prompts and gradients")
    seed: Seed = Field(0, description="seed of prompts, order, crops and attack starts")
    validate_every: int = Field(5, ge=1, description="epochs between two validations")
    validation_attack: Annotated[str, Field(pattern=r"^pgd-[1-9]\d*$")] = Field(
        "pgd-5", description="short attack on validation"
    )
    checkpoint_every: int = Field(50, ge=1, description="optimiser steps between two checkpoints")
    log_every: int = Field(10, ge=1, description="optimiser steps between two lines of metrics")
    tensorboard: bool = Field(False, description="also write TensorBoard events")
    trackers: list[str] = Field(
        [], description="trackers of accelerate that get the metrics too: wandb, mlflow, tensorboard, …"
    )
    tracker_options: dict[str, dict[str, Any]] = Field(
        {}, description="what a tracker's constructor takes, such as {wandb: {project: mine, tags: [a]}}"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_tracker(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _eps_fits_norm_and_attack(self, info: ValidationInfo) -> TrainSettings:
        threat = self.threat
        if info.context != RECORDED:
            self.attack.attack_class.from_settings(self.attack).check_threat(threat)
        return self

    @model_validator(mode="after")
    def _warms_up(self) -> TrainSettings:
        if self.eps_warmup_from and not self.eps_warmup_epochs:
            raise ValueError("train.eps_warmup_from has no effect without train.eps_warmup_epochs; set both or neither")
        return self

    @model_validator(mode="after")
    def _reaches_eps(self, info: ValidationInfo) -> TrainSettings:
        wait, warmup = self.eps_warmup_wait, self.eps_warmup_epochs
        if info.context == RECORDED or not (wait >= self.epochs or wait + warmup > self.epochs):
            return self
        never = "eps is 0 throughout" if wait >= self.epochs else "the full eps is never reached"
        raise ValueError(
            f"train.eps_warmup_wait={wait:g} and train.eps_warmup_epochs={warmup:g} do not fit into "
            f"train.epochs={self.epochs}: {never}; shorten them or train longer"
            + (" (with train.steps, train.epochs is what they are shares of)" if self.steps else "")
        )

    @model_validator(mode="after")
    def _reaches_learning_rate(self, info: ValidationInfo) -> TrainSettings:
        if info.context == RECORDED or self.warmup_epochs <= self.epochs:
            return self
        raise ValueError(
            f"train.warmup_epochs={self.warmup_epochs:g} is longer than train.epochs={self.epochs}, so that train.optimizer.lr "
            "is never reached; shorten it or train longer"
        )

    @model_validator(mode="after")
    def _one_average(self) -> TrainSettings:
        if self.ema and self.swa:
            raise ValueError(
                "train.ema and train.swa cannot be combined, as only one average is deployed; set one of them to 0"
            )
        return self

    @property
    def threat(self) -> ThreatModel:
        """The training threat model."""
        return ThreatModel(parse_eps(self.eps, self.norm), self.norm)

    @property
    def length(self) -> str:
        """How long training is, in words."""
        return f"{self.steps} steps" if self.steps else f"{self.epochs} epochs"
