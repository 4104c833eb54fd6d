"""Tensors in safetensors files: no pickle, and whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from apd.errors import InputError
from apd.util.files import is_lfs_pointer, write_atomic

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, keep: Path | None = None
) -> None:
    """Write tensors of any device and type, and some text, as one file; the old one moves to ``keep``."""
    from safetensors.torch import save  # imports torch, which a look into a run folder does without

    # Clones, because safetensors refuses tensors that share memory.
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_atomic(file, save(copies, dict(metadata)), keep=keep)


def read_tensors(file: Path, way_out: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and text of a file.

    Raises:
        InputError: a missing or damaged file, or a Git LFS pointer; but for the pointer the message ends with ``way_out``.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; {way_out}.") from error
    except (SafetensorError, OSError) as error:
        if is_lfs_pointer(file):
            raise InputError(
                f"{file} is a Git LFS pointer instead of tensors; to get the file: git lfs pull"
            ) from error
        raise InputError(f"{file} is damaged ({error}); {way_out}.") from error


def sha256_of_file(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
