"""How an encoder wants its images: one small record, read from its own files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image

from apd.errors import InputError
from apd.models.checkpoint import check_no_code, read_json, square

_INTERPOLATION = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
MOST_RESIZED = 25_000_000
"""Pixels that an image of fewer may have while it is resized: its short side grows to the encoder's, its long side with it."""


@dataclass(frozen=True)
class Preprocessing:
    """From a photo to the encoder's square of pixels.

    Args:
        size: side of the square the encoder takes, in pixels.
        resize: side to resize to before cropping, in pixels (the short side for ``crop``, both for ``squash``).
        mode: ``crop`` keeps the aspect ratio and crops the centre (CLIP); ``squash`` does not (SigLIP).
        interpolation: ``bicubic``, ``bilinear``, ``lanczos`` or ``nearest``.
        mean, std: normalisation, one value per channel, for pixels in [0,1].
    """

    size: int
    resize: int
    mode: Literal["crop", "squash"]
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def plain(cls, size: int) -> Preprocessing:
        """Resize to a square of ``size`` pixels, without normalisation."""
        return cls(size, size, "squash", "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def apply(self, image: Image.Image) -> Image.Image:
        """An RGB image of (size, size) pixels, not normalised.

        Raises:
            ValueError: an image so long and thin that resizing it would fill the memory.
        """
        wide, high = self.resized(*image.size)
        left, top = (wide - self.size) // 2, (high - self.size) // 2
        resized = image.resize((wide, high), Image.Resampling[self.interpolation.upper()])
        return resized.crop((left, top, left + self.size, top + self.size))

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an image is resized to before it is cropped.

        Raises:
            ValueError: an image so long and thin that resizing it would fill the memory.
        """
        wide = high = self.size
        if self.mode == "crop":
            # The long side is cut, not rounded, as transformers and torchvision do: a pixel more moves the crop by half of one.
            wide, high = (int(self.resize * side / min(width, height)) for side in (width, height))
        # Pillow first makes the rows wide, then the columns high.
        if wide * max(height, high) > max(width * height, MOST_RESIZED):
            raise ValueError(f"{width} x {height} pixels are too long and thin to be resized; crop it")
        return wide, high


def read_preprocessing(path: Path, image_size: int, source: str) -> Preprocessing:
    """Read the image processing of ``preprocessor_config.json``, or of the image part of ``processor_config.json``.

    Raises:
        InputError: for a record without the values needed, or with processing that is not supported.
    """
    record = read_json(path, source)
    about = f"{source}: {path.name}"
    try:
        record = _stated(record.get("image_processor", record))
        check_no_code(record, path.name, source)
        _check_steps(record, image_size, about)
        crop, resize = _resizing(record, image_size, about)
        normalised = record.get("do_normalize", True)
        return Preprocessing(
            size=image_size,
            resize=resize,
            mode="crop" if crop else "squash",
            interpolation=cast(Any, _interpolation(record.get("resample", 3), about)),
            mean=_per_channel(record["image_mean"], "image_mean", about) if normalised else (0.0, 0.0, 0.0),
            std=_per_channel(record["image_std"], "image_std", about) if normalised else (1.0, 1.0, 1.0),
        )
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{source}: {path.name} does not say {error}; write size, image_mean and image_std there."
        ) from error


def _stated(record: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a record states: null is the same as nothing."""
    return {name: value for name, value in record.items() if value is not None}


def _resizing(record: Mapping[str, Any], image_size: int, about: str) -> tuple[bool, int]:
    """Whether images are cropped, and the side in pixels that they are resized to."""
    size = record["size"]
    size = _stated(size) if isinstance(size, dict) else {"shortest_edge": size}
    crop = "shortest_edge" in size
    if crop and (len(size) > 1 or record.get("do_center_crop", True) is False):
        why = "gives size more than a shortest_edge" if len(size) > 1 else "sets do_center_crop to false"
        raise InputError(
            f"{about} {why}: images would not become square. Let size be a shortest_edge and do_center_crop true, or give "
            "size a height and a width."
        )
    resize = square(size["shortest_edge"] if crop else size, "size", about)
    if resize < image_size if crop else resize != image_size:
        raise InputError(f"{about} resizes to {resize} px, but the model takes {image_size} px; correct size.")
    return crop, resize


def _check_steps(record: Mapping[str, Any], image_size: int, about: str) -> None:
    """Refuse steps that `Preprocessing` would quietly leave out or add."""
    if record.get("do_resize", True) is False:
        raise InputError(f"{about} sets do_resize to false, which is not supported: set it to true, with the size.")
    for step in ("do_pad", "do_flip_channel_order"):
        if record.get(step, False):
            raise InputError(f"{about} sets {step} to true, which is not supported: set it to false.")
    factor = record.get("rescale_factor", 1 / 255)
    if record.get("do_rescale", True) is False or abs(float(factor) * 255 - 1) > 1e-3:
        raise InputError(
            f"{about} asks for pixels that are not in [0,1] (do_rescale {record.get('do_rescale', True)}, rescale_factor "
            f"{factor}), which is not supported: eps is in [0,1] pixel units."
        )
    if record.get("crop_size") is not None and record.get("do_center_crop", True):
        side = square(record["crop_size"], "crop_size", about)
        if side != image_size:
            raise InputError(f"{about} crops to {side} px, but the model takes {image_size} px; correct crop_size.")


def _interpolation(value: object, about: str) -> str:
    name = str(value).rpartition(".")[2].lower()
    if value in _INTERPOLATION:
        name = _INTERPOLATION[value]
    if name not in _INTERPOLATION.values():
        raise InputError(
            f"{about}: resample {str(value)[:40]!r} is not supported; use {', '.join(_INTERPOLATION.values())}."
        )
    return name


def _per_channel(value: object, name: str, about: str) -> tuple[float, float, float]:
    values = [value] if isinstance(value, int | float) else list(cast(Any, value))
    values = values * 3 if len(values) == 1 else values
    least = sys.float_info.min if name == "image_std" else 0.0
    # Also refuses NaN, and values for pixels of 0 to 255.
    if len(values) != 3 or not all(least <= float(value) <= 1 for value in values):
        raise InputError(
            f"{about}: {name} must be three numbers for pixels in [0,1], or one for all channels, got {str(value)[:60]}."
        )
    return cast(tuple[float, float, float], tuple(float(v) for v in values))
