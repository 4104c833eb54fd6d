"""The built-in data set: scikit-learn's scans of handwritten digits."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from PIL import Image

from apd.data.dataset import ImageSet
from apd.data.splits import Pools

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAIN, VAL = 700, 200
"""Images of the training pool and, after them, of the validation pool; the other 897 are the test split."""


def load_digits() -> Pools:
    """1,797 real scans of 8x8 pixels in 17 greys (light ink on black), shipped with scikit-learn.

    The fixed splits follow the file's order: writers come one after the other there, so that the test images are mostly
    of other writers than the training images.
    """
    from sklearn.datasets import load_digits as load

    data = load()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)
    images = ImageSet(
        tuple(f"digits/{index:04d}" for index in range(len(grey))),
        torch.from_numpy(data.target).long(),
        tuple(partial(Image.fromarray, image) for image in grey),
    )
    return Pools(
        name="digits",
        source="digits",
        class_names=NAMES,
        train=images.select(range(TRAIN)),
        val=images.select(range(TRAIN, TRAIN + VAL)),
        test=images.select(range(TRAIN + VAL, len(images))),
        templates=("a photo of the digit {}.",),
        mirror=False,
        note="Splits in file order: first 700 scans for training, next 200 for validation, last 897 for test.",
    )
