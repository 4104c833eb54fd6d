"""The checkpoints of an unfinished run: the last one, and the one before in case the last is damaged."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apd.errors import InputError
from apd.util.files import parse_json
from apd.util.json_shape import COUNT, NUMBER, check_shape
from apd.util.messages import get_logger
from apd.util.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

log = get_logger("apd.runs")

_WAY_OUT = "start this run again with --overwrite (Python: overwrite=True)"
_SHAPE = {"step": COUNT, "metrics_bytes": COUNT, "seconds?": NUMBER, "state": {}}

Checkpoint = tuple[dict[str, "Tensor"], dict[str, Any]]
"""Tensors, and a record of the rest."""


class Checkpoints:
    """Two files: ``state.safetensors`` and ``previous.safetensors``, each whole or not there, each with a hash of its content.

    Args:
        folder: is made with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last, self.previous = folder / "state.safetensors", folder / "previous.safetensors"

    def save(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Save the state of training; the last checkpoint becomes the previous one."""
        text = json.dumps(record)
        about = {"apd": text, "sha256": _hash(tensors, text)}
        write_tensors(self.last, tensors, about, keep=self.previous)

    def load(self) -> Checkpoint | None:
        """Read the last checkpoint, or the one before if that is damaged; None where there is none.

        Raises:
            InputError: there are checkpoints, and all of them are damaged.
        """
        found, damage = self._find()
        if found is None and damage:
            raise damage[0]
        return found

    def clean(self) -> Checkpoint | None:
        """Do as `load`, and remove a damaged last checkpoint, so that it does not take the place of the one before.

        Raises:
            InputError: see `load`.
        """
        found, damage = self._find()
        if found is None and damage:
            raise damage[0]
        if damage:
            assert found is not None
            log.warning(f"{damage[0]} Training resumes from the checkpoint before it, after step {found[1]['step']}.")
            with suppress(OSError):
                self.last.unlink()
        return found

    def remove(self) -> None:
        """Remove them: a finished run never reads one."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _find(self) -> tuple[Checkpoint | None, list[InputError]]:
        """Return the newest whole checkpoint, and what is wrong with newer ones."""
        damage: list[InputError] = []
        for file in (self.last, self.previous):
            if file.exists():
                try:
                    return _read(file), damage
                except InputError as error:
                    damage.append(error)
        return None, damage


def _read(file: Path) -> Checkpoint:
    """Read a file and check it against its hash, which those of older versions lack."""
    tensors, about = read_tensors(file, _WAY_OUT)
    record = parse_json(about.get("apd", ""), file, _WAY_OUT)
    check_shape(record, _SHAPE, file, _WAY_OUT)
    if "sha256" in about and about["sha256"] != _hash(tensors, about["apd"]):
        raise InputError(f"{file} is damaged (its content differs from its hash); {_WAY_OUT}.")
    return tensors, record


def _hash(tensors: Mapping[str, Tensor], text: str) -> str:
    import torch  # not at the top: a look into a run folder does without

    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
