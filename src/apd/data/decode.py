"""From image files of any kind to the encoder's square of RGB bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from apd.clip.preprocessing import Preprocessing
from apd.errors import InputError

Source = Path | Callable[[], Image.Image]
"""Where an image comes from: a file, or a function without arguments that opens it."""

PATIENCE = 2.0
"""Seconds before a progress bar is worth its line."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image, upright and in RGB.

    Turned as its EXIF says; transparency is laid on white; 16-bit grey is scaled (65535 becomes 255), not clipped.

    Raises:
        ValueError: for pixels whose range is unknown (floats, and integers above 65535).
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = _from_16_bits(image)
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), coloured)
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels are integers beyond 16 bits; save it with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def read_image(source: Source, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """One image as the encoder wants it: uint8 (3, size, size). Pillow's own errors come through."""
    with Image.open(source) if isinstance(source, Path) else source() as image:
        square = preprocessing.apply(to_rgb(image))
    return np.asarray(square).transpose(2, 0, 1)


def decode_all(
    ids: Sequence[str], sources: Sequence[Source], preprocessing: Preprocessing, skip_bad: bool, progress: bool
) -> tuple[Tensor, list[int]]:
    """Decode in threads, in order.

    Returns:
        uint8 (M,3,size,size), and the indices of the images left out because they cannot be read.

    Raises:
        InputError: see ``ImageSet.decode``.
    """
    pixels = np.empty((len(sources), 3, preprocessing.size, preprocessing.size), np.uint8)
    skipped: list[int] = []

    def fill(index: int) -> Exception | None:
        try:
            pixels[index] = read_image(sources[index], preprocessing)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly everything for a broken file
            return error
        return None

    pool = ThreadPoolExecutor()
    try:
        for index, error in enumerate(_watched(pool.map(fill, range(len(sources))), len(sources), progress)):
            if error is None:
                continue
            if not skip_bad:
                raise InputError(_complaint(ids[index], sources[index], error)) from error
            skipped.append(index)
    finally:
        pool.shutdown(cancel_futures=True)
    if skipped and len(skipped) == len(sources):
        raise InputError(f"none of the {len(sources)} images can be read; the first is {ids[0]}.")
    kept = np.delete(pixels, skipped, axis=0) if skipped else pixels
    return torch.from_numpy(kept), skipped


def _complaint(id_: str, source: Source, error: Exception) -> str:
    where = source if isinstance(source, Path) else id_
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"cannot read the image {where} ({reason}). Replace or remove it, or go on without it: --skip-bad-images."


def _watched(results: Iterable[Exception | None], total: int, show: bool) -> Iterator[Exception | None]:
    """Pass the results on, with a bar on standard error (if that is a terminal) once it takes long."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield from results
        return
    bar = Progress(console=console, transient=True)
    task = bar.add_task("decoding images", total=total)
    started = time.monotonic()
    running = False
    try:
        for result in results:
            yield result
            bar.advance(task)
            if not running and time.monotonic() - started > PATIENCE:
                bar.start()
                running = True
    finally:
        bar.stop()
