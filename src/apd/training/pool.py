"""The images that training draws from: those with a label, then those without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from apd.data.dataset import UNKNOWN, Decoded, Images


class Joined:
    """Images of several kinds, one after the other.

    Args:
        parts: at least one.
    """

    def __init__(self, *parts: Images) -> None:
        self._parts = parts
        self._starts = [sum(map(len, parts[:i])) for i in range(len(parts))]
        self.ids = tuple(id_ for part in parts for id_ in part.ids)
        self.labels = torch.cat([part.labels for part in parts])

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def pixels(self, index: Tensor) -> Tensor:
        """The images at ``index`` (B,) as float32 (B,3,S,S) in [0,1]."""
        found: Tensor | None = None
        for part, start in zip(self._parts, self._starts, strict=True):
            own = (index >= start) & (index < start + len(part))
            pixels = part.pixels(index[own] - start)
            found = pixels.new_empty(len(index), *pixels.shape[1:]) if found is None else found
            found[own] = pixels
        assert found is not None
        return found

    def expect(self, index: Sequence[int]) -> None:
        """Let the images at ``index``, which will be asked for soon, be decoded meanwhile if they are streamed."""
        for part, start in zip(self._parts, self._starts, strict=True):
            part.expect([i - start for i in index if start <= i < start + len(part)])


@dataclass(frozen=True, eq=False)
class Pool:
    """Labelled images at the positions from 0, unlabelled ones behind them.

    Args:
        labelled: images with labels.
        unlabelled: images whose labels are not looked at; None for none.
        pseudo_labels: (U,) int64, for those without; None: `UNKNOWN`.
    """

    labelled: Decoded
    unlabelled: Images | None = None
    pseudo_labels: Tensor | None = None
    ids: tuple[str, ...] = field(init=False)
    labels: Tensor = field(init=False)
    _all: Joined = field(init=False)

    def __post_init__(self) -> None:
        joined = Joined(self.labelled, *([] if self.unlabelled is None else [self.unlabelled]))
        object.__setattr__(self, "_all", joined)
        object.__setattr__(self, "ids", joined.ids)
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
        return self._all.pixels(index)

    def expect(self, index: Sequence[int]) -> None:
        """Let the images at ``index``, which will be asked for soon, be decoded meanwhile if they are streamed."""
        self._all.expect(index)

    def with_labels(self, pseudo_labels: Tensor) -> Pool:
        """Return these images with the given labels (U,) for the unlabelled ones."""
        return replace(self, pseudo_labels=pseudo_labels)
