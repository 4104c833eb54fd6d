"""Temperature scaling (Guo et al. 2017): one number that makes a classifier's probabilities mean what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.errors import ApdError, InputError

BINS = 15
"""Bins of equal width for the expected calibration error, as in the paper."""
_MOST = 100.0
"""The temperature lies between 1/100 and 100; only a classifier worse than chance reaches an end."""

_SPLITS = {"val": "validation", "train": "training"}


@dataclass(frozen=True)
class Calibration:
    """A temperature that was fitted on labelled images, and how far off the probabilities were without and with it.

    It holds for clean images like those it was fitted on; an attack raises the probability of a wrong class at will.

    Args:
        temperature: what logits are divided by before the softmax.
        images: how many it was fitted on.
        ece_before: expected calibration error on these images at temperature 1, in [0,1].
        ece_after: with the temperature.
        split: which images of the data these were: ``val``, ``test`` or ``train``.
    """

    temperature: float
    images: int
    ece_before: float
    ece_after: float
    split: str = "val"

    @classmethod
    def fit(cls, logits: Tensor, labels: Tensor, split: str = "val") -> Calibration:
        """Fit the temperature that makes the labels most likely.

        To the images one is added whose class is unknown (uniform), so that the temperature stays finite where all
        images are right.

        Args:
            logits: (N, C) of clean images that the classifier was not trained on.
            labels: (N,) the right classes.
            split: which images of the data these are.

        Raises:
            InputError: no images, labels beyond the classes, or logits that are not finite.
        """
        z, y = logits.detach().double().cpu(), labels.detach().cpu()
        if z.ndim != 2 or len(z) == 0 or len(z) != len(y):
            raise InputError(f"Calibration needs one label per image, got logits {tuple(z.shape)}, {len(y)} labels.")
        if not bool(z.isfinite().all()) or int(y.min()) < 0 or int(y.max()) >= z.shape[1]:
            raise InputError("Calibration needs finite logits and labels among the classes.")
        temperature = _most_likely(z, y)
        before, after = (expected_calibration_error((z / t).softmax(dim=1), y) for t in (1.0, temperature))
        return cls(temperature, len(z), before, after, split)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Calibration:
        """The calibration that `record` wrote."""
        known = {"split": "val", **record}  # older runs, which knew no other, do not name it
        return cls(**{name: known[name] for name in cls.__dataclass_fields__})

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @property
    def fitted_on(self) -> str:
        """How many images of which split, in words."""
        return f"{self.images} {_SPLITS.get(self.split, self.split)} images"

    def describe(self) -> str:
        """Say what was done and whether it helped, in one sentence without its end."""
        no_better = ", no improvement" if self.ece_after >= self.ece_before else ""
        return (
            f"calibrated on {self.fitted_on} (temperature {self.temperature:.3g}, calibration error "
            f"{100 * self.ece_before:.1f} % before, {100 * self.ece_after:.1f} % after{no_better})"
        )


def probabilities(logits: Tensor, calibration: Calibration | None) -> Tensor:
    """Probabilities (B, C) of logits (B, C); calibrated where a calibration is known.

    Raises:
        ApdError: they are not finite.
    """
    scaled = logits if calibration is None else logits / calibration.temperature
    shown = scaled.softmax(dim=-1)
    if not bool(shown.isfinite().all()):
        raise ApdError("The model gives probabilities that are not finite; apd doctor looks at the machine.")
    return shown


def expected_calibration_error(shown: Tensor, labels: Tensor) -> float:
    """Mean distance between confidence and accuracy, over bins of confidence weighted by their images (Guo 2017, eq. 3).

    Args:
        shown: probabilities (N, C).
        labels: (N,) the right classes.
    """
    confidence, predicted = shown.double().max(dim=1)
    right = (predicted == labels).double()
    index = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, index.cpu(), (right - confidence).cpu())
    return float(gaps.abs().sum() / len(labels))


def _most_likely(z: Tensor, y: Tensor) -> float:
    """Minimise the mean cross entropy over log(1/temperature), in which it has one valley, with L-BFGS."""
    target = F.one_hot(y, z.shape[1]).double()
    target = (len(z) * target + 1 / z.shape[1]) / (len(z) + 1)
    log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    # Not stopped by small changes, which are all that there are where logits are tiny.
    optimizer = torch.optim.LBFGS(
        [log_scale], max_iter=100, tolerance_grad=1e-9, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(z * log_scale.exp(), target)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    temperature = float((-log_scale.detach()).exp())
    return min(max(temperature, 1 / _MOST), _MOST)
