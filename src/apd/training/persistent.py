"""Adversarial images that move along with the prompts: one backward pass gives the gradient of both."""

from __future__ import annotations

import torch
from torch import Tensor

from apd.attacks import PGD
from apd.attacks.threat import ThreatModel
from apd.errors import InputError
from apd.settings.train import AttackSettings
from apd.training.batches import Batch, Batches
from apd.util.device import free_memory

_PART = 256
_COPIES = 3
"""Of the kept images, at once, while a checkpoint is written: themselves, a copy on the CPU, and the file's bytes."""


class Replayed:
    """Free adversarial training (Shafahi 2019, arXiv 1904.12843): the images of a batch, over several optimiser steps.

    Args:
        settings: start and step of the pixels.
    """

    def __init__(self, settings: AttackSettings) -> None:
        self.attack = PGD(1, settings.step_size, random_start=settings.random_start)
        self.clean: Tensor
        self.moving: Tensor

    def begin(self, batch: Batch, threat: ThreatModel) -> None:
        """Take up a batch."""
        self.clean, self.moving = batch.x, self.attack.start(batch.x, threat, batch.seeds)

    def view(self, batch: Batch, threat: ThreatModel) -> Tensor:
        """The adversarial images (B,3,S,S) of this step, with a graph to the pixels that move."""
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
        self.moving = self.attack.step(self.moving.detach(), self.moving.grad, self.clean, threat)


class Carried(Replayed):
    """Adversarial images kept from epoch to epoch (ATTA, Zheng 2020, arXiv 1912.11969), a step a visit.

    They are kept before the crop, and the gradient reaches them through it: the crop of a perturbation is the
    perturbation of the crop, up to the bicubic overshoot, which is projected away.

    Args:
        settings: start and step of the pixels.
        batches: whose images are kept, as float32 on their device.
        threat: the budget at the start.

    Raises:
        InputError: for several processes, which would each keep the others' images as they were; for more images than
            memory is sensibly given to.
    """

    def __init__(self, settings: AttackSettings, batches: Batches, threat: ThreatModel) -> None:
        super().__init__(settings)
        if batches.processes > 1:
            raise InputError(
                f"train.attack.kind=carried needs one process, got {batches.processes}; use kind=free or pgd."
            )
        self.batches, train, seeds = batches, batches.images.train, batches.start_seeds()
        _check_memory(train.images)
        self.kept = torch.empty(train.images.shape, device=train.images.device)
        for part in torch.split(torch.arange(len(train), device=train.images.device), _PART):
            self.kept[part] = self.attack.start(train.pixels(part), threat, seeds[part.to(seeds.device)])

    def begin(self, batch: Batch, threat: ThreatModel) -> None:
        """Take up a batch, where its images were left."""
        self.clean = self.batches.images.train.pixels(batch.index)
        self.moving = threat.project(self.kept[batch.index], self.clean)

    def view(self, batch: Batch, threat: ThreatModel) -> Tensor:
        """The adversarial images (B,3,S,S) of this step, with a graph to the pixels that move."""
        cropped = self.batches.crop(self.moving.requires_grad_(), batch.crops)
        # The projection lets every gradient through: a pixel at the edge of the ball must be able to come back.
        return threat.project(cropped.detach(), batch.x) + (cropped - cropped.detach())

    def climb(self, batch: Batch, threat: ThreatModel) -> None:
        """Move the pixels along the gradient that a loss of `view` has left, and keep them."""
        super().climb(batch, threat)
        self.kept[batch.index] = self.moving


def _check_memory(images: Tensor) -> None:
    """Refuse to keep float32 copies of ``images`` where they and a checkpoint of them would hardly fit."""
    need = 4 * images.numel()
    for device in {images.device, torch.device("cpu")}:
        free = free_memory(device)
        if _COPIES * need > free:
            raise InputError(
                f"train.attack.kind=carried keeps {len(images)} images in {need / 1e9:.1f} GB, and {_COPIES} times as much "
                f"while a checkpoint is written, but {device} has {free / 1e9:.1f} GB left; use kind=free or pgd, or fewer "
                "data.shots."
            )


def moving_pixels(settings: AttackSettings, batches: Batches, threat: ThreatModel) -> Replayed | None:
    """What ``settings`` ask for; None for attacks that make their images anew each step."""
    if settings.kind == "free":
        return Replayed(settings)
    return Carried(settings, batches, threat) if settings.kind == "carried" else None
