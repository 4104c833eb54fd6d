"""From image files of any kind to the encoder's square of RGB bytes."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from apd.data.unreadable import RAW_SUFFIXES, WAY_OUT, Source, complaint, how_to_convert
from apd.errors import InputError
from apd.models.preprocessing import Preprocessing
from apd.util.messages import get_logger
from apd.util.progress import watched

log = get_logger("apd.data")

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats of image files that are read."""
MOST_TRANSPARENT = 100_000_000
"""Pixels of an image with transparency, which takes five times the memory of another; Pillow's limit is for all images."""
_QUEUED = 4096
"""Images that wait for a thread."""
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each orientation of EXIF upright."""
_SHALLOW = 4095
"""The highest level of 12 bits."""
_BYTES = ((np.arange(65536) + 128) // 257).astype(np.uint8)
"""The nearest 8-bit level of each 16-bit level."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image, upright and in RGB.

    Turned as its EXIF says; transparency is laid on white; 16-bit grey is scaled (65535 becomes 255), not clipped.

    Raises:
        ValueError: for pixels whose range is unknown (floats, and integers above 65535).
    """
    if image.has_transparency_data and image.width * image.height > MOST_TRANSPARENT:
        raise ValueError(f"it has {image.width} x {image.height} pixels with transparency, more than is read")
    image.load()
    # Not by `ImageOps.exif_transpose`, which writes the other tags anew and fails at an odd one.
    if (turn := _TURNS.get(_orientation(image))) is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I"):
        image = _from_16_bits(image, image.info.get("transparency"))
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), coloured)
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> object:
    """The orientation by EXIF; 1, upright, where it cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever a broken block of tags makes Pillow raise; the pixels are there all the same
        return 1


def _from_16_bits(image: Image.Image, transparent: object) -> Image.Image:
    """Grey of 16 bits as 8; pixels of the transparent level, where there is one, are white."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels are integers beyond 16 bits; save it with 8 or 16 bits")
    if 0 < values.max() <= _SHALLOW:
        _warn_of_shallow()
    grey = _BYTES[values]
    return Image.fromarray(
        np.where(values == transparent, np.uint8(255), grey) if isinstance(transparent, int) else grey
    )


@cache
def _warn_of_shallow() -> None:
    """Warn, once, of grey images that use a small part of their range."""
    log.warning(
        f"A grey image has 16 bits, but no value above {_SHALLOW}, as cameras of 12 bits write them: the model sees it nearly "
        "black. If others are like it, scale them to the whole range first."
    )


def copied(image: Image.Image, lock: threading.Lock) -> Image.Image:
    """Copy an image in memory, whose file Pillow reads now if it has not: by one thread at a time, with the image's lock."""
    with lock:
        return image.copy()


def _opened(source: Source) -> Image.Image:
    if not isinstance(source, Path):
        return source()
    if source.suffix.lower() in RAW_SUFFIXES:
        raise ValueError("a camera's raw file")
    return open_image(source)


def open_image(file: Path | BinaryIO) -> Image.Image:
    """Open an image of one of `FORMATS`; Pillow knows others, some of which start other programs (EPS).

    Raises:
        ValueError: what is not a file, such as a pipe, which would never end; Pillow's own errors come through.
    """
    if isinstance(file, Path) and file.exists() and not file.is_file():
        raise ValueError("it is not a file")
    return Image.open(file, formats=_readable())


@cache
def _readable() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF is not in every Pillow


class _Room:
    """Lets images be decoded at a time whose pixels are not too many together, so that threads do not fill the memory."""

    def __init__(self, pixels: int) -> None:
        self._free, self._most, self._changed = pixels, pixels, threading.Condition()

    @contextmanager
    def held(self, image: Image.Image) -> Iterator[None]:
        """Wait until there is room for an image; one that is larger than all room gets all of it."""
        needed = min(image.width * image.height, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= needed)
            self._free -= needed
        try:
            yield
        finally:
            with self._changed:
                self._free += needed
                self._changed.notify_all()


_ROOM = _Room(120_000_000)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Hide Pillow's warnings, which name no file: of large photos below its limit, and of odd EXIF data."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def read_image(source: Source, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """One image as the encoder wants it: uint8 (3, size, size). Pillow's own errors come through."""
    with _opened(source) as image, _ROOM.held(image):
        square = preprocessing.apply(to_rgb(image))
    return np.asarray(square).transpose(2, 0, 1)


@quiet_pillow()
def decode_all(
    ids: Sequence[str], sources: Sequence[Source], preprocessing: Preprocessing, skip_bad: bool, progress: bool
) -> tuple[Tensor, dict[int, str]]:
    """Decode in threads, in order.

    Returns:
        uint8 (M,3,size,size), and the images left out because they cannot be read: index to a sentence.

    Raises:
        InputError: for an image that cannot be read, unless ``skip_bad``.
    """
    pixels = np.empty((len(sources), 3, preprocessing.size, preprocessing.size), np.uint8)

    def fill(index: int) -> None:
        pixels[index] = read_image(sources[index], preprocessing)

    skipped: dict[int, str] = {}
    for index, error in _tried(fill, len(sources), "decoding images", progress):
        if error is None:
            continue
        skipped[index] = complaint(ids[index], sources[index], error)
        if not skip_bad:
            raise InputError(f"{skipped[index]} {WAY_OUT}{how_to_convert([ids[index]])}") from error
    kept = np.delete(pixels, list(skipped), axis=0) if skipped else pixels
    return torch.from_numpy(kept), skipped


def decode_given(ids: Sequence[str], sources: Sequence[Source], preprocessing: Preprocessing) -> Tensor:
    """Decode images that a caller in Python holds, each of which gets an answer: uint8 (N,3,size,size).

    Raises:
        InputError: for an image that cannot be read.
    """
    pixels, bad = decode_all(ids, sources, preprocessing, skip_bad=True, progress=False)
    if bad:
        raise InputError(f"{next(iter(bad.values()))} Replace it, or leave it out.")
    return pixels


@quiet_pillow()
def find_bad(
    ids: Sequence[str],
    sources: Sequence[Source],
    seconds: float,
    progress: bool,
    preprocessing: Preprocessing | None = None,
) -> tuple[dict[int, str], int]:
    """Look for images that cannot be read without waiting for what they show: JPEGs are decoded at an eighth of their size.

    Args:
        ids: one per image.
        sources: where each image comes from, read in this order.
        seconds: after which the rest is left unseen.
        progress: show how far it is when it takes long.
        preprocessing: the encoder's, if it is known, which images must have a shape for.

    Returns:
        The images that cannot be read, index to a sentence, and how many were looked at.
    """

    def load(index: int) -> None:
        with _opened(sources[index]) as image:
            if preprocessing is not None:
                preprocessing.resized(*image.size)
            if isinstance(sources[index], Path):  # an image of the caller's would stay as small
                image.draft("RGB", (1, 1))
            with _ROOM.held(image):
                to_rgb(image)

    found: dict[int, str] = {}
    looked, started = 0, time.monotonic()
    for index, error in _tried(load, len(sources), "checking images", progress):
        looked += 1
        if error is not None:
            found[index] = complaint(ids[index], sources[index], error)
        if time.monotonic() - started > seconds:
            break
    return found, looked


def _tried(
    work: Callable[[int], None], total: int, what: str, progress: bool
) -> Iterator[tuple[int, Exception | None]]:
    """Do ``work`` for 0, 1, … in threads; each index in order, with the error that it raised."""

    def attempt(index: int) -> Exception | None:
        try:
            work(index)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly everything for a broken file
            return error
        return None

    pool = ThreadPoolExecutor()
    try:
        starts = range(0, total, _QUEUED)  # all of 10^6 images at once would take 1.6 GB of memory
        tried = (error for start in starts for error in pool.map(attempt, range(start, min(start + _QUEUED, total))))
        yield from enumerate(watched(tried, total, what) if progress else tried)
    finally:
        pool.shutdown(cancel_futures=True)
