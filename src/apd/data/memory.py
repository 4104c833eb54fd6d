"""Data sets from tensors and from torch data sets."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from apd.data.dataset import IN_MEMORY, Dataset, ImageSet
from apd.data.settings import DataSettings
from apd.data.splits import Pools, checked_templates, few_shot
from apd.errors import InputError
from apd.util.listed import listed
from apd.util.text import one_line, short


def tensor_images(name: str, split: str, x: Tensor, y: Tensor) -> ImageSet:
    """Name the images (N,3,H,W), uint8 or floats in [0,1], and labels (N,) of a split by place and content.

    Raises:
        InputError: shapes, types or values that are not those.
    """
    try:
        x, y = torch.as_tensor(x).detach().cpu().clone(), torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError) as error:  # such as a list of tensors
        raise InputError(f"{name} {split}: images and labels must be tensors or arrays ({one_line(error)}).") from error
    if x.dim() != 4 or x.shape[1] != 3 or y.shape != (len(x),) or y.is_floating_point():
        raise InputError(
            f"{name} {split}: images must be (N,3,H,W) with int labels (N,), got {tuple(x.shape)} and "
            f"{str(y.dtype).removeprefix('torch.')} labels {tuple(y.shape)}."
        )
    if x.is_floating_point():
        # Written so that a value that is not a number is outside.
        if len(x) and not (float(x.min()) >= 0 and float(x.max()) <= 1):
            raise InputError(
                f"{name} {split}: float images must be in [0,1], got {float(x.min()):.3g} to {float(x.max()):.3g}."
            )
        x = (x * 255).round().to(torch.uint8)
    if x.dtype != torch.uint8:
        raise InputError(f"{name} {split}: images must be uint8, or floats in [0,1], got {x.dtype}.")
    # The content is part of the id, so that a run is not resumed on other images of the same number.
    prints = (hashlib.blake2b(image.numpy().tobytes(), digest_size=4).hexdigest() for image in x)
    ids = tuple(f"{name}/{split}/{i:06d}-{digest}" for i, digest in enumerate(prints))
    return ImageSet(ids, y.to(torch.int64).cpu(), tuple(partial(_picture, image) for image in x))


def pair_of(name: str, split: str, given: Any) -> tuple[Any, Any]:
    """Return images and labels as they were given together.

    Raises:
        InputError: something else than two.
    """
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise InputError(
            f"{name} {split}: give images and labels, {split}=(images, labels), got {type(given).__name__}."
        )
    return given[0], given[1]


def torch_images(name: str, split: str, part: Any) -> ImageSet:
    """Name the items of a torch data set of (image, label) by place; labels come from its ``targets``, if it has them.

    Raises:
        InputError: items of another kind, or pixels that are normalised.
    """
    targets = None if getattr(part, "target_transform", None) else getattr(part, "targets", None)
    try:
        if len(part):
            _item(part, 0)
        given = None if targets is None else list(targets)
        if given is not None and len(given) != len(part):
            raise ValueError(f"it has {len(part)} items and {len(given)} targets")
        # Items are what counts; a subclass that gives other labels keeps its targets.
        if given is None or (len(part) and any(part[i][1] != given[i] for i in (0, len(part) // 2, len(part) - 1))):
            given = [part[i][1] for i in range(len(part))]
        labels = [int(label) for label in given]
        if odd := [label for label, whole in zip(given, labels, strict=True) if float(label) != whole]:
            raise ValueError(f"a label is {short(odd[0])}, which is not a whole number")
    except (TypeError, ValueError, IndexError, KeyError, OSError, RuntimeError) as error:
        raise InputError(
            f"{name} {split}: items must be pairs of an image (PIL, or a tensor (3,H,W), uint8 or in [0,1]) and a label, but "
            f"{type(error).__name__}: {one_line(error)}."
        ) from error
    shared = _Shared(part)
    sources = tuple(partial(shared.read, i) for i in range(len(labels)))
    return ImageSet(tuple(f"{name}/{split}/{i:06d}" for i in range(len(labels))), torch.tensor(labels), sources)


def of_splits(
    name: str, class_names: Sequence[str], splits: Mapping[str, ImageSet | None], templates: Sequence[str]
) -> Dataset:
    """Put the splits of a data set in memory together; without ``val`` some training images are held out.

    Raises:
        InputError: a label without a name, or splits that lack images.
    """
    names = listed(class_names, f"{name}: class_names")
    train, val, test = (splits[key] for key in ("train", "val", "test"))
    if train is None or test is None:
        lacking = "train" if train is None else "test"
        raise InputError(f"{name}: images for train and for test are needed, and {lacking} is None.")
    for images in (train, val, test):
        if (
            images is not None
            and len(images)
            and not 0 <= int(images.labels.min()) <= int(images.labels.max()) < len(names)
        ):
            raise InputError(
                f"{name}: labels go from {int(images.labels.min())} to {int(images.labels.max())}, but there are "
                f"{len(names)} class names; labels count from 0."
            )
    source = f"{IN_MEMORY}{name}"
    pools = Pools(name, source, names, train, val, test, checked_templates(templates))
    return few_shot(pools, DataSettings(source=source, shots="all", seed=0))


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())


class _Shared:
    """A data set that threads share, which need not be made for that: read one item at a time, as where all are in one file."""

    def __init__(self, part: Any) -> None:
        self.part, self.lock = part, threading.Lock()

    def read(self, index: int) -> Image.Image:
        """The image of an item."""
        with self.lock:
            image = _item(self.part, index)
            image.load()
            return image.copy()

    def __getstate__(self) -> Any:
        """The data set alone: a copy, in another process too, has a lock of its own."""
        return {"part": self.part}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.part, self.lock = state["part"], threading.Lock()


def _item(part: Any, index: int) -> Image.Image:
    image = part[index][0]
    if isinstance(image, Image.Image):
        return image
    pixels = torch.as_tensor(image)
    if pixels.dim() != 3 or len(pixels) not in (1, 3):
        raise ValueError(f"an image of shape {tuple(pixels.shape)}")
    if pixels.is_floating_point():
        if not 0 <= float(pixels.min()) <= float(pixels.max()) <= 1:
            low, high = float(pixels.min()), float(pixels.max())
            raise ValueError(f"pixels go from {low:.3g} to {high:.3g}: leave out Normalize, the model does it itself")
        pixels = (pixels * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        raise ValueError(f"pixels are {pixels.dtype}")
    return _picture(pixels.expand(3, -1, -1))
