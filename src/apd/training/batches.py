"""What each optimiser step sees: its images, cropped, and the seeds of its attack, all drawn from (seed, step, id)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from apd.attacks import Replayed, ThreatModel
from apd.data import Dataset
from apd.data.augment import random_resized_crop_flip
from apd.data.batch import Batch
from apd.data.dataset import Decoded
from apd.data.streamed import Streamed, keep_or_stream
from apd.data.unreadable import how_to_convert
from apd.errors import InputError
from apd.models import DualEncoder
from apd.settings.train import TrainSettings
from apd.training.order import Order, labelled_per_batch
from apd.training.pool import Pool
from apd.training.schedule import Schedule
from apd.util.messages import get_logger
from apd.util.seeds import sample_seeds

log = get_logger("apd.training")

AHEAD = 2
"""Batches whose images are decoded while another is trained on, if they are streamed."""


@dataclass(frozen=True)
class TrainingImages:
    """Training and validation images as bytes on the device; unlabelled ones that do not fit are streamed from their files."""

    train: Decoded
    val: Decoded
    size: int
    mirror: bool
    unlabelled: Decoded | Streamed | None = None

    @property
    def skipped(self) -> dict[str, tuple[str, ...]]:
        """Ids of the images that could not be read, by what they were for."""
        more = () if self.unlabelled is None else self.unlabelled.skipped
        return {"training": self.train.skipped, "validation": self.val.skipped, "unlabelled": more}

    def to(self, device: torch.device) -> TrainingImages:
        """Move the images to a device."""
        more = None if self.unlabelled is None else self.unlabelled.to(device)
        return replace(self, train=self.train.to(device), val=self.val.to(device), unlabelled=more)


def decode(encoder: DualEncoder, data: Dataset, skip_bad: bool, show: bool) -> TrainingImages:
    """The images of both splits, as the encoder wants them, on its device.

    Raises:
        InputError: no images to train on or to validate with; images that cannot be read, unless ``skip_bad``;
            a class all of whose training images cannot be.
    """
    data.check_trainable()
    preprocessing, room = encoder.info.preprocessing, data.settings.memory_gb
    train, val = (
        images.decode(preprocessing, skip_bad=skip_bad, progress=show).to(encoder.device)
        for images in (data.train, data.val)
    )
    more = keep_or_stream(data.unlabelled, preprocessing, room, skip_bad=skip_bad, progress=show)
    unlabelled = more.to(encoder.device)
    _check_classes(data, train)
    return TrainingImages(train, val, encoder.info.image_size, data.mirror, unlabelled if len(unlabelled) else None)


def _check_classes(data: Dataset, train: Decoded) -> None:
    """Refuse to train where a class has lost all its images: it would be learned from nothing."""
    names, drawn, left = data.class_names, data.train.labels.tolist(), set(train.labels.tolist())
    lost = [label for label in range(len(names)) if label in drawn and label not in left]
    if lost:
        first, count = data.train.ids[drawn.index(lost[0])], drawn.count(lost[0])
        more = f" (And {len(lost) - 1} more such classes.)" if len(lost) > 1 else ""
        raise InputError(
            f"Without its unreadable images the class {names[lost[0]]!r} has no training image: none of {count} can be "
            f"read, the first is {first}.{more} Replace them, or remove them so that others are drawn."
            f"{how_to_convert([first])}"
        )


def _check_share(settings: TrainSettings, pool: Pool) -> None:
    """Refuse a share of labelled images where there is nothing to share, and warn of one that is not reached."""
    share = settings.labelled_share
    if share is None:
        return
    if not _both(pool):
        raise InputError(
            f"train.labelled_share={share:g} mixes labelled and unlabelled images, {_but(pool)}; remove it."
        )
    if settings.batch_size < 2:
        raise InputError(
            f"train.labelled_share={share:g} needs batches of two images or more; raise train.batch_size=1."
        )
    wanted, own = labelled_per_batch(settings), len(pool.labelled)
    if own < wanted:
        log.warning(
            f"train.labelled_share={share:g} wants {wanted} labelled images in a batch of {settings.batch_size}, but there are "
            f"{own}, each once in a batch: the share is {own / settings.batch_size:.2g}."
        )


def _check_pseudo_labels(settings: TrainSettings, pool: Pool) -> None:
    """Refuse to choose a teacher of unlabelled images where there are none, or no labelled ones to choose it by."""
    if settings.pseudo_labels is not None and not _both(pool):
        raise InputError(
            f"train.pseudo_labels={settings.pseudo_labels} chooses by labelled images who labels the others, {_but(pool)}; "
            "remove it."
        )


def _both(pool: Pool) -> bool:
    """Whether there are labelled and unlabelled images."""
    return pool.unlabelled is not None and len(pool.labelled) > 0


def _but(pool: Pool) -> str:
    """How many there are of each, for a message."""
    unlabelled = 0 if pool.unlabelled is None else len(pool.unlabelled)
    return f"but there are {len(pool.labelled)} labelled and {unlabelled} unlabelled ones"


class Batches:
    """The batches of an epoch, as many as `len`.

    Args:
        images: the training split, and the unlabelled images, are drawn from.
        settings: batch size, augmentation and seed.
        process: which of the processes this is.
        processes: how many share a batch.
    """

    def __init__(self, images: TrainingImages, settings: TrainSettings, process: int = 0, processes: int = 1) -> None:
        self.images, self.settings, self.process, self.processes = images, settings, process, processes
        self.pool = Pool(images.train, images.unlabelled)
        self.replays = 1
        _check_share(settings, self.pool)
        _check_pseudo_labels(settings, self.pool)
        # A batch smaller than the number of processes would leave one of them without images.
        self._order = Order(self.pool, settings, at_least=processes)
        if not len(self._order):
            raise InputError(
                f"train.batch_size={settings.batch_size} of {len(self.pool)} training images leaves no batch with an image for "
                f"each of {processes} processes; raise it, or start fewer processes."
            )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._order)

    def draw(self, number: int, step: int) -> Batch:
        """Batch ``number``, counted from the start of training, with the crops and seeds of optimiser step ``step``."""
        pool, chosen = self.pool, self._order.chosen(number)
        mine = chosen[self.process :: self.processes]
        batches = math.ceil(Schedule(self.settings, len(self)).steps / self.replays)
        for later in range(number, min(number + AHEAD + 1, batches)):
            pool.expect(self._order.chosen(later)[self.process :: self.processes])
        ids = [pool.ids[i] for i in mine]
        where = torch.tensor(mine, device=pool.device)
        crops, seeds = (sample_seeds(ids, self.settings.seed, purpose, step) for purpose in ("crop", "start"))
        weight = len(mine) * self.processes / len(chosen)
        labelled = None if pool.unlabelled is None else where < len(pool.labelled)
        return Batch(where, crops, self.crop(pool.pixels(where), crops), pool.labels[where], seeds, weight, labelled)

    def crop(self, x: Tensor, seeds: Tensor) -> Tensor:
        """Images (B,3,S,S) in [0,1], cropped and flipped as ``seeds`` (B,) draw it; as they are where that is off."""
        augment = self.settings.augment
        if not augment.enabled:
            return x
        mirror = self.images.mirror if augment.flip is None else augment.flip
        return random_resized_crop_flip(x, seeds, size=self.images.size, scale=augment.scale, mirror=mirror)

    def hand_over(self, moving: Replayed, threat: ThreatModel) -> None:
        """Let an attack whose images move with the prompts keep what it needs of all training images.

        Raises:
            InputError: for images that are kept by several processes, each of which would miss the others' steps.
        """
        if self.images.unlabelled is not None and moving.keeps_images:
            raise InputError(
                f"train.attack.kind={self.settings.attack.kind} keeps all training images and takes no unlabelled ones; use "
                "kind=pgd or free."
            )
        if self.processes > 1 and moving.keeps_images:
            raise InputError(
                f"train.attack.kind={self.settings.attack.kind} needs one process, got {self.processes}; use kind=free or pgd."
            )
        self.replays = moving.replays
        seeds = sample_seeds(self.images.train.ids, self.settings.seed, "start")
        moving.keep(self.images.train, seeds, self.crop, threat)
