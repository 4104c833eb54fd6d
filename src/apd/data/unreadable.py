"""Why an image cannot be read, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from apd.util.files import is_lfs_pointer
from apd.util.text import one_line

Source = Path | Callable[[], Image.Image]
"""Where an image comes from: a file, or a function without arguments that opens it."""

RAW_SUFFIXES = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"})
"""Cameras' raw files. Pillow takes some of them for TIFF, and reads the small preview."""
CAMERA_SUFFIXES = frozenset({".heic", ".heif"}) | RAW_SUFFIXES
"""Photos that Pillow does not read by itself, beside the images it does."""
_CONVERT = frozenset({".avif"}) | CAMERA_SUFFIXES

WAY_OUT = (
    "Replace or remove it, or continue without it: --skip-bad-images "
    "(a suite's data set: skip_bad_images: true; Python: skip_bad_images=True)."
)
"""What to do about an image that cannot be read."""


def complaint(id_: str, source: Source, error: Exception) -> str:
    """A sentence on an image that cannot be read."""
    where = source if isinstance(source, Path) else id_
    return f"cannot read the image {where} ({reason(error, source)})."


def reason(error: Exception, source: Source | None = None) -> str:
    """Why an image cannot be read, in a few words."""
    if isinstance(source, Path):
        if is_lfs_pointer(source):
            return "these are Git LFS pointers instead of images; to get the images: git lfs pull"
        if source.suffix.lower() in _CONVERT:
            return f"{source.suffix[1:].upper()} is a format that cannot be read here"
        if _holds_heif(source):
            return "by its content it is a HEIC or AVIF photo, whatever its name"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "its content is not an image, or of a format that is not read"
    return one_line(error) or type(error).__name__


def _holds_heif(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif")


def how_to_convert(names: Iterable[str]) -> str:
    """How to convert the photos among unreadable files, for the end of a message; empty where there are none.

    >>> how_to_convert(["a/1.jpg", "a/2.HEIC", "a/3.heic"])
    ' To convert HEIC to JPEG with ImageMagick: magick mogrify -format jpg *.HEIC'
    """
    suffixes = [Path(name).suffix for name in names if Path(name).suffix.lower() in _CONVERT]
    if not suffixes:
        return ""
    kinds = ", ".join(dict.fromkeys(suffix[1:].upper() for suffix in suffixes))
    return f" To convert {kinds} to JPEG with ImageMagick: magick mogrify -format jpg *{suffixes[0]}"
