"""The settings of `apd.train` as its keyword arguments, so that editors complete them and mypy knows a misspelt one.

Each class has the names and types of a section of settings, which has the defaults, the checks and the descriptions:
`TrainOptions` those of `apd.settings.train.TrainSettings`. A test compares them.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from apd.attacks.threat import Norm
from apd.settings.train import ChosenTeacher


class OptimizerOptions(TypedDict, total=False):
    """See `apd.settings.train.OptimizerSettings`."""

    name: Literal["sgd", "adamw", "radam"]
    lr: float
    weight_decay: float
    momentum: float
    clip: float | None
    sam: float
    awp: float


class AugmentOptions(TypedDict, total=False):
    """See `apd.settings.train.AugmentSettings`."""

    enabled: bool
    scale: tuple[float, float]
    flip: bool | None


class TrainOptions(TypedDict, total=False):
    """See `apd.settings.train.TrainSettings`; ``eps`` and ``attack`` are arguments of `apd.train` itself."""

    norm: Norm
    optimizer: OptimizerOptions
    augment: AugmentOptions
    epochs: int
    steps: int | None
    warmup_epochs: float
    batch_size: int
    labelled_share: float | None
    pseudo_labels: ChosenTeacher | None
    eps_warmup_epochs: float
    eps_warmup_from: float
    eps_warmup_wait: float
    eps_per_image: bool
    label_smoothing: float
    ema: float
    swa: float
    precision: Literal["fp32", "bf16"]
    seed: int
    validate_every: int
    validation_attack: str
    checkpoint_every: int
    log_every: int
    tensorboard: bool
    trackers: str | list[str]
    tracker_options: dict[str, dict[str, Any]]
    device: str
