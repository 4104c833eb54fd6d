"""The images that training draws from: those with a label, then those without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from apd.data.dataset import UNKNOWN, Decoded
from apd.data.streamed import Streamed


@dataclass(frozen=True, eq=False)
class Pool:
    """Labelled images at the positions from 0, unlabelled ones behind them.

    Args:
        labelled: images with labels.
        unlabelled: images whose labels are not looked at; None for none.
        pseudo_labels: (U,) int64, for those without; None: `UNKNOWN`.
    """

    labelled: Decoded
    unlabelled: Decoded | Streamed | None = None
    pseudo_labels: Tensor | None = None
    ids: tuple[str, ...] = field(init=False)
    labels: Tensor = field(init=False)

    def __post_init__(self) -> None:
        more = () if self.unlabelled is None else self.unlabelled.ids
        object.__setattr__(self, "ids", (*self.labelled.ids, *more))
        labels = self.labelled.labels
        if self.unlabelled is not None:
            known = self.pseudo_labels
            unknown = labels.new_full((len(self.unlabelled),), UNKNOWN) if known is None else known.to(labels)
            labels = torch.cat([labels, unknown])
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.labels.device

    def pixels(self, index: Tensor) -> Tensor:
        """The images at ``index`` (B,) as float32 (B,3,S,S) in [0,1]."""
        if self.unlabelled is None:
            return self.labelled.pixels(index)
        n, size = len(self.labelled), self.labelled.images.shape[-1]
        own = index < n
        found = torch.empty(len(index), 3, size, size, device=self.device)
        found[own] = self.labelled.pixels(index[own])
        found[~own] = self.unlabelled.pixels(index[~own] - n)
        return found

    def expect(self, index: Sequence[int]) -> None:
        """Let the images at ``index``, which will be asked for soon, be decoded meanwhile if they are streamed."""
        if self.unlabelled is not None:
            n = len(self.labelled)
            self.unlabelled.expect([i - n for i in index if i >= n])

    def with_labels(self, pseudo_labels: Tensor) -> Pool:
        """Return these images with the given labels (U,) for the unlabelled ones."""
        return replace(self, pseudo_labels=pseudo_labels)
