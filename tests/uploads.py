"""Files that somebody may upload, good and hostile."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def photo(file: Path, size: tuple[int, int] = (40, 30)) -> Path:
    """A colourful image."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / width, 255 * y / height, (37 * x + 11 * y) % 256], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def bomb(file: Path, side: int = 30000) -> Path:
    """A PNG of a few bytes that claims to be ``side`` pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(4096))) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return file


def svg(file: Path) -> Path:
    """A drawing with a script in it."""
    file.write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>window.hacked = 1</script></svg>')
    return file


def truncated(file: Path) -> Path:
    """The first half of a photo."""
    data = photo(file, (400, 300)).read_bytes()
    file.write_bytes(data[: len(data) // 2])
    return file


def text(file: Path) -> Path:
    """Words."""
    file.write_text("hello")
    return file


def large(file: Path) -> Path:
    """100 MB of zeros, of which the disk keeps none."""
    with open(file, "wb") as stream:
        stream.truncate(100 * 2**20)
    return file


def postscript(file: Path) -> Path:
    """A program that Pillow would hand to Ghostscript."""
    file.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    return file


def thin(file: Path) -> Path:
    """One pixel high: its short side resized to the encoder's, it would be enormous."""
    return photo(file, (60_000, 1))


def empty(file: Path) -> Path:
    """No bytes at all."""
    file.touch()
    return file


HOSTILE: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "bomb.png": (bomb, ["50 million"]),
    "wide.png": (lambda file: bomb(file, 9000), ["9000 x 9000", "50 million"]),
    "drawing.svg": (svg, ["SVG", "PNG"]),
    "half.png": (truncated, []),
    "half.jpg": (truncated, ["truncated"]),
    "words.png": (text, ["PNG"]),
    "large.png": (large, ["100 MB", "20 MB"]),
    "program.png": (postscript, ["PNG"]),
    "thin.png": (thin, ["60000 x 1"]),
    "empty.png": (empty, ["empty"]),
}
"""File name to what makes it, and what its refusal names."""
