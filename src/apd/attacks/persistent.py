"""Adversarial images that move along with the prompts: one backward pass gives the gradient of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from apd.attacks.base import TrainingAttack
from apd.attacks.pgd import PGD
from apd.attacks.threat import ThreatModel
from apd.data.batch import Batch
from apd.data.dataset import Decoded
from apd.errors import InputError
from apd.util.device import free_memory

if TYPE_CHECKING:
    from apd.attacks.settings import AttackSettings

_COPIES = 3
"""Peak number of copies of the kept images while a checkpoint is written: themselves, a CPU copy, serialised bytes."""


class Replayed(TrainingAttack):
    """Free adversarial training (Shafahi 2019, arXiv 1904.12843): a batch's images, over several optimiser steps.

    Args:
        step_size: length of a step as a fraction of eps.
        random_start: start at a random point of the ball rather than at the clean image.
        replays: optimiser steps on a batch.
    """

    moves_with_prompts: ClassVar[bool] = True
    keeps_images: ClassVar[bool] = False
    """Whether images are kept from epoch to epoch."""

    def __init__(self, step_size: float = 1.0, random_start: bool = True, replays: int = 4) -> None:
        self.pgd, self.replays = PGD(1, step_size, random_start), replays
        self.clean: Tensor
        self.moving: Tensor

    @classmethod
    def from_settings(cls, settings: AttackSettings) -> Replayed:
        """Build the attack that the section ``train.attack`` describes."""
        return cls(settings.step_size, settings.random_start, settings.replays)

    @property
    def starts_at_clean(self) -> bool:
        """Without a random start."""
        return self.pgd.starts_at_clean

    @property
    def passes(self) -> int:
        """None of its own."""
        return 0

    def keep(
        self, images: Decoded, seeds: Tensor, crop: Callable[[Tensor, Tensor], Tensor], threat: ThreatModel
    ) -> None:
        """Take note, before the first step, of all training images; by default there is nothing to keep.

        Args:
            images: training images, not cropped.
            seeds: (N,) int64, of the random starts.
            crop: crops images (B,3,S,S) as seeds (B,) draw it.
            threat: the budget of the first step.
        """

    def begin(self, batch: Batch, threat: ThreatModel) -> None:
        """Take up a batch."""
        self.clean, self.moving = batch.x, self.pgd.start(batch.x, threat, batch.seeds)

    def view(self, batch: Batch, threat: ThreatModel) -> Tensor:
        """Return the adversarial images (B,3,S,S) of this step, with a graph to the pixels that move.

        What a loss of an earlier view of the same step has left is forgotten.
        """
        self.moving.grad = None
        return self.moving.requires_grad_()

    def climb(self, batch: Batch, threat: ThreatModel) -> None:
        """Move the pixels along the gradient that a loss of `view` has left.

        Raises:
            InputError: the loss has no term on adversarial images.
        """
        if self.moving.grad is None:
            raise InputError(
                "train.attack.kind=free and carried need a loss with a term on adversarial images; use kind=pgd."
            )
        self.moving = self.pgd.step(self.moving.detach(), self.moving.grad, self.clean, threat)

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state` gave; other tensors are ignored."""


class Carried(Replayed):
    """Adversarial images kept from epoch to epoch, one step per visit (ATTA, Zheng 2020, arXiv 1912.11969).

    They are kept before the crop, and the gradient reaches them through it: the crop of a perturbation is the
    perturbation of the crop, up to the bicubic overshoot, which is projected away.
    """

    keeps_images: ClassVar[bool] = True
    images_at_once: ClassVar[int] = 256
    """How many images are started in one go."""

    @classmethod
    def from_settings(cls, settings: AttackSettings) -> Carried:
        """Build the attack that the section ``train.attack`` describes."""
        return cls(settings.step_size, settings.random_start, replays=1)

    def keep(
        self, images: Decoded, seeds: Tensor, crop: Callable[[Tensor, Tensor], Tensor], threat: ThreatModel
    ) -> None:
        """Store all training images as float32 on their device, each at its start.

        Raises:
            InputError: for more images than fit in memory.
        """
        check_memory(images.images)
        self.images, self.crop = images, crop
        self.kept = torch.empty(images.images.shape, device=images.images.device)
        for part in torch.split(torch.arange(len(images), device=images.images.device), self.images_at_once):
            self.kept[part] = self.pgd.start(images.pixels(part), threat, seeds[part.to(seeds.device)])

    def begin(self, batch: Batch, threat: ThreatModel) -> None:
        """Take up a batch, where its images were left."""
        self.clean = self.images.pixels(batch.index)
        self.moving = threat.project(self.kept[batch.index], self.clean)

    def view(self, batch: Batch, threat: ThreatModel) -> Tensor:
        """Return the adversarial images (B,3,S,S) of this step, with a graph to the pixels that move."""
        self.moving.grad = None
        cropped = self.crop(self.moving.requires_grad_(), batch.crops)
        # The projection lets every gradient through: a pixel at the edge of the ball must be able to come back.
        return threat.project(cropped.detach(), batch.x) + (cropped - cropped.detach())

    def climb(self, batch: Batch, threat: ThreatModel) -> None:
        """Move the pixels along the gradient that a loss of `view` has left, and keep them."""
        super().climb(batch, threat)
        self.kept[batch.index] = self.moving

    def state(self) -> dict[str, Tensor]:
        """Return the kept images."""
        return {"pixels": self.kept}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back the kept images."""
        self.kept.copy_(tensors["pixels"])


def check_memory(images: Tensor) -> None:
    """Refuse to keep float32 copies of ``images`` where they and a checkpoint of them would hardly fit.

    Raises:
        InputError: with what they need and what there is.
    """
    need = 4 * images.numel()
    for device in {images.device, torch.device("cpu")}:
        free = free_memory(device)
        if _COPIES * need > free:
            raise InputError(
                f"train.attack.kind=carried keeps {len(images)} images in {need / 1e9:.1f} GB, and {_COPIES} times as much "
                f"while a checkpoint is written, but {device} has {free / 1e9:.1f} GB left; use kind=free or pgd, or fewer "
                "data.shots."
            )
