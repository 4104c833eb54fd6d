"""Images and texts that come from a browser: whatever is not acceptable is refused in one sentence."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from apd.data.decode import to_rgb
from apd.errors import InputError
from apd.models.preprocessing import Preprocessing
from apd.util.text import one_line, short

MOST_BYTES = 20 * 2**20
"""Largest upload."""
MOST_PIXELS = 50_000_000
"""Largest image: a phone's biggest photo."""
MOST_ASPECT = 20
"""Largest ratio of an image's sides: the short side is resized to the encoder's, and the long side with it."""
MOST_CLASSES = 200
LONGEST_NAME = 100
"""Characters of a class name."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are read; Pillow's others include some that run programs."""


def read_upload(path: str | Path, folder: Path, preprocessing: Preprocessing) -> Tensor:
    """Read an uploaded image as the encoder wants it.

    Args:
        path: where the upload lies.
        folder: where uploads lie; other files are not read.
        preprocessing: the encoder's.

    Returns:
        float32 (3,S,S) in [0,1].

    Raises:
        InputError: a file elsewhere, too large, of another kind, or damaged.
    """
    file = _own_file(path, folder)
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise InputError(f"This file is too large: {size / 2**20:.0f} MB, the most is {MOST_BYTES / 2**20:.0f} MB.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                _check_size(*image.size)
                square = preprocessing.apply(to_rgb(image))
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"This image has too many pixels: the most is {_MILLIONS}. Make it smaller.") from error
    except UnidentifiedImageError as error:
        raise InputError(_unknown(file)) from error
    except Exception as error:  # Pillow's decoders raise nearly everything for a broken file
        why = one_line(error) or type(error).__name__
        raise InputError(f"This image cannot be read: it is damaged or incomplete ({short(why)}).") from error
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
    return pixels.view(square.height, square.width, 3).permute(2, 0, 1).float() / 255


def _own_file(path: str | Path, folder: Path) -> Path:
    """The file itself, links followed; refused if it does not lie in ``folder``, whatever the browser sent."""
    try:
        file = Path(path).resolve()
        own = file.is_relative_to(folder.resolve()) and file.is_file()
    except (OSError, ValueError):  # too long, or with a null byte
        own = False
    if not own:
        raise InputError("This image is not here any more; drop it again.")
    return file


_MILLIONS = f"{MOST_PIXELS // 10**6} million"


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise InputError(
            f"This image has too many pixels: {width} x {height}, the most is {_MILLIONS}. Make it smaller."
        )
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise InputError(
            f"This image is too long and thin: {width} x {height}, one side may be {MOST_ASPECT} times the other. Crop it."
        )


def _unknown(file: Path) -> str:
    with open(file, "rb") as stream:
        start = stream.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<svg", b"<?xml", b"<!doctype svg", b"<!--")):
        what = "SVG and XML files are not photos"
    elif start[4:8] == b"ftyp":
        what = "HEIC, AVIF and video files are not read here"
    elif not start:
        what = "This file is empty"
    else:
        what = "This file is not an image that can be read"
    return f"{what}; use {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."


def read_class_names(text: str, own: Sequence[str] = ()) -> tuple[str, ...]:
    r"""Class names from a text with one per line; spaces around them and empty lines are left out.

    Args:
        text: what the page sends.
        own: the run's class names: as many are taken, and as long ones, whatever the limits for others.

    Raises:
        InputError: too few, too many or too long names.

    >>> read_class_names("cat\n\n snow leopard ")
    ('cat', 'snow leopard')
    """
    names = tuple(line.strip() for line in str(text).splitlines() if line.strip())
    if len(names) < 2:
        raise InputError(f"Write at least two class names, one per line; there {_are(names)}.")
    most = max(MOST_CLASSES, len(own))
    if len(names) > most:
        raise InputError(f"There are {len(names)} class names; the most is {most}.")
    known = frozenset(own)
    long = next((name for name in names if len(name) > LONGEST_NAME and name not in known), None)
    if long is not None:
        raise InputError(f"The class name {long[:20]}… has {len(long)} characters; the most is {LONGEST_NAME}.")
    return names


def _are(names: Sequence[str]) -> str:
    return "is one" if names else "are none"


def read_number(value: object, what: str, least: float, most: float) -> float:
    """A number from a slider, which a browser may send as anything.

    Raises:
        InputError: not a number, or outside of its range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{what} must be a number, got {short(value, 40)}.")
    if not least <= value <= most:
        raise InputError(f"{what} must be from {least:g} to {most:g}, got {value:g}.")
    return float(value)
