"""One batch in one optimiser step, and what has been computed for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import torch.nn.functional as F
from torch import Tensor

from apd.data.batch import Batch
from apd.data.dataset import UNKNOWN
from apd.models.classifier import BoundCLIP

K = TypeVar("K")
V = TypeVar("V")


class PerObject(Generic[K, V]):
    """Compute a value once per object, such as a `Step` or a `Batch`, and forget it with the object.

    Args:
        compute: the object to its value.
    """

    def __init__(self, compute: Callable[[K], V]) -> None:
        self._compute = compute
        self._values: WeakKeyDictionary[K, V] = WeakKeyDictionary()

    def __call__(self, key: K) -> V:
        """Return the value of ``key``, computed at the first call."""
        if key not in self._values:
            self._values[key] = self._compute(key)
        return self._values[key]


@dataclass(eq=False)
class Step:
    """One batch in one optimiser step, with the student bound for it.

    Args:
        batch: images, labels and seeds; shared by all steps that are taken on it.
        student: the student bound for this step, with gradients to its prompts.
        smoothing: label smoothing of the outer loss's cross-entropy terms (Szegedy 2016).
    """

    batch: Batch
    student: BoundCLIP
    smoothing: float = 0.0
    _clean_features: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """Images (B,3,S,S) in [0,1]."""
        return self.batch.x

    @property
    def labels(self) -> Tensor:
        """Labels (B,) int64."""
        return self.batch.labels

    @property
    def index(self) -> Tensor:
        """Positions (B,) int64 of the images among all training images."""
        return self.batch.index

    @property
    def labelled(self) -> Tensor | None:
        """Which images (B,) bool have a label that was given; None for all of them."""
        return self.batch.labelled

    def clean_features(self) -> Tensor:
        """Return the student's features of the clean images (B, D), with gradients; computed once per step."""
        if self._clean_features is None:
            self._clean_features = self.student.features(self.x)
        return self._clean_features

    def clean_logits(self) -> Tensor:
        """Return the student's logits of the clean images (B, C), with gradients."""
        return self.student.logits_from_features(self.clean_features())

    def cross_entropy(self, z: Tensor) -> Tensor:
        """Return the outer loss's ``CE(z, y)`` of logits (B, C), averaged over the batch, with smoothed labels if asked.

        Images of unknown label count with 0.
        """
        if self.labelled is None:
            return F.cross_entropy(z, self.labels, label_smoothing=self.smoothing)
        total = F.cross_entropy(z, self.labels, ignore_index=UNKNOWN, label_smoothing=self.smoothing, reduction="sum")
        return total / len(self.labels)
