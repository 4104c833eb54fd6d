"""Tensors in safetensors files: no pickle, and whole or not at all."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from apd.errors import InputError
from apd.util.files import is_lfs_pointer, write_atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.nn import Module

MOST_BYTES = 64 * 2**30
"""Bytes of a file of tensors: weights and checkpoints of the largest models."""
_LONGEST_HEADER = 16 * 2**20
"""Bytes of names and shapes: a hundred thousand tensors."""


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, keep: Path | None = None
) -> None:
    """Write tensors of any device and type, and some text, as one file; the old one moves to ``keep``."""
    from safetensors.torch import save  # imports torch, which a look into a run folder does without

    # Clones, because safetensors refuses tensors that share memory.
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_atomic(file, save(copies, dict(metadata)), keep=keep)


def read_tensors(file: Path, way_out: str, most: int = MOST_BYTES) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and text of a file.

    Args:
        file: of safetensors; its header cannot speak of more than the file holds.
        way_out: what to do about a bad one, for the end of the message.
        most: bytes that it may have.

    Raises:
        InputError: a missing, damaged or oversized file, or a Git LFS pointer; but for the pointer the message ends with
            ``way_out``.
    """
    try:
        _check_size(file, most, way_out)
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; {way_out}.") from error
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        if is_lfs_pointer(file):
            raise InputError(
                f"{file} is a Git LFS pointer instead of tensors; to get the file: git lfs pull"
            ) from error
        raise InputError(f"{file} is damaged ({error}); {way_out}.") from error


def sha256_of_tensor(value: Tensor | NDArray[Any]) -> str:
    """The SHA-256 of a tensor's or array's bytes, wherever it is, in hexadecimal; of its ``repr`` if it has none."""
    import numpy as np
    import torch

    if isinstance(value, np.ndarray):
        held = repr(value.tolist()).encode() if value.dtype.hasobject else np.ascontiguousarray(value).tobytes()
    elif value.layout != torch.strided or value.is_meta:
        held = repr(value).encode()
    else:
        plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        held = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(held).hexdigest()


def sha256_of_weights(module: Module) -> str:
    """A fingerprint of all weights and buffers: names, types, shapes and bytes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256_of_file(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_text(file: Path) -> str:
    """The SHA-256 of a text file, whatever ends its lines: git and editors of Windows change them."""
    return hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def _check_size(file: Path, most: int, way_out: str) -> None:
    """Refuse what would fill the memory: a large file, one that takes no room on the disk, a header of gigabytes.

    Raises:
        InputError: saying which.
        ValueError: for the header, which may also be that of another kind of file.
    """
    about = file.stat()
    if not stat.S_ISREG(about.st_mode):
        raise InputError(f"{file} is not a file; {way_out}.")
    if about.st_size > most:
        raise InputError(f"{file} has {about.st_size / 2**30:.1f} GB, too much for what it should hold; {way_out}.")
    if about.st_size > 2**30 and getattr(about, "st_blocks", about.st_size) * 512 < about.st_size // 4:
        raise InputError(f"{file} is mostly holes (a sparse file); {way_out}.")
    with open(file, "rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    if header > _LONGEST_HEADER:
        raise ValueError(f"a header of {header} bytes")
