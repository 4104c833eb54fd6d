"""PNG files with 16 bits per channel, which Pillow neither writes nor reads in colour (it reads the upper 8 bits)."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from apd.errors import InputError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_PIXELS = 4096 * 4096
_UP = 2
"""The filter that stores each row as its difference to the row above."""


def encode_png16(pixels: NDArray[np.uint16]) -> bytes:
    """The PNG file of an RGB image (H, W, 3) with 16 bits per channel (PNG specification, third edition)."""
    height, width, channels = pixels.shape
    if channels != 3:
        raise ValueError(f"an RGB image is needed, got {channels} channels")
    rows = np.ascontiguousarray(pixels, ">u2").view(np.uint8).reshape(height, 6 * width)
    differences = np.diff(rows, axis=0, prepend=np.zeros((1, 6 * width), np.uint8))
    filtered = np.concatenate([np.full((height, 1), _UP, np.uint8), differences], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b"")]
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def decode_png16(content: bytes) -> NDArray[np.uint16]:
    """The image (H, W, 3) in a file that `encode_png16` made.

    Raises:
        InputError: another kind of file, or a damaged one.
    """
    try:
        return _decoded(content)
    except (ValueError, struct.error, zlib.error, KeyError) as error:
        raise InputError(f"not a 16-bit PNG file written by apd, or a damaged one ({error}).") from error


def _decoded(content: bytes) -> NDArray[np.uint16]:
    if not content.startswith(_SIGNATURE):
        raise ValueError("no PNG signature")
    chunks, at = dict[bytes, bytes](), len(_SIGNATURE)
    while at < len(content):
        (length,), kind = struct.unpack_from(">I", content, at), content[at + 4 : at + 8]
        data = content[at + 8 : at + 8 + length]
        if content[at : at + 12 + length] != _chunk(kind, data):
            raise ValueError("a damaged chunk")
        chunks[kind] = data
        at += 12 + length
    width, height, *form = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    if form != [16, 2, 0, 0, 0]:
        raise ValueError("other than 16-bit RGB")
    if not 0 < width * height <= _MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels")
    size, inflate = height * (1 + 6 * width), zlib.decompressobj()
    data = inflate.decompress(chunks[b"IDAT"], size + 1)  # no more, whatever a small file says
    filtered = np.frombuffer(data, np.uint8).reshape(height, 1 + 6 * width)
    if not (filtered[:, 0] == _UP).all():
        raise ValueError("another filter")
    rows = np.cumsum(filtered[:, 1:], axis=0, dtype=np.uint8)
    return rows.view(">u2").reshape(height, width, 3).astype(np.uint16)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
