"""Tensors in files of `torch.save` and `torch.jit.save`, read without executing anything that is in them."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from apd.errors import InputError
from apd.util.files import is_lfs_pointer
from apd.util.tensors import read_tensors
from apd.util.text import printable

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".pt", ".pth", ".tar", ".bin", ".ckpt", ".safetensors")
"""How files of weights end."""
_IDLE = tuple(
    f"torch.optim.{name}"
    for name in (
        *("sgd.SGD", "adam.Adam", "adamw.AdamW", "radam.RAdam", "rmsprop.RMSprop"),
        *(
            f"lr_scheduler.{name}LR"
            for name in ("CosineAnnealing", "MultiStep", "Step", "Exponential", "Linear", "Lambda")
        ),
        *("lr_scheduler.CosineAnnealingWarmRestarts", "lr_scheduler.LRScheduler", "lr_scheduler._LRScheduler"),
    )
)
"""Classes of the optimisers and schedulers that training code saves beside weights; their objects become `Inert`."""
_SCRIPT = ("__torch__.", "torch.jit._pickle.")
"""How the classes of a TorchScript archive begin, and what makes its lists of numbers."""


_DICTS = ("builtins.dict", "__builtin__.dict")


class Inert:
    """Stands for an object whose class is not imported: takes any arguments and state, and does nothing.

    Args:
        arguments: ignored.
    """

    state: Any = None

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _mapping(*_: Any) -> dict[Any, Any]:
    """Stands for `collections.defaultdict`, in which optimisers keep their state."""
    return {}


def read_torch_file(file: Path, source: str) -> Any:
    """Read what a file of weights holds: tensors, numbers and text, in dictionaries and lists.

    Optimisers and schedulers that lie beside weights are left as `Inert` objects. A TorchScript archive, such as the files
    of the original CLIP, gives its state dictionary; its code is not looked at.

    Args:
        file: of `torch.save`, `torch.jit.save` or safetensors.
        source: how the user calls it.

    Raises:
        InputError: a missing or damaged file, or one that holds objects of other classes, which only code could make.
    """
    if file.suffix == ".safetensors":
        return read_tensors(file, "get it again")[0]
    if not file.is_file():
        raise InputError(f"There is no file {printable(str(file))}.")
    if is_lfs_pointer(file):
        raise InputError(f"{file} is a Git LFS pointer instead of weights; to get the file: git lfs pull")
    try:
        _refuse_bomb(file, source)
        if not _is_script(file):
            return _load(file, source)
        with tempfile.TemporaryFile() as plain:
            _without_code(file, plain)
            return dict(_tensors(_load(plain, source, script=True), ""))
    except InputError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{source}: {file.name} is damaged ({error}); get it again.") from error


def _load(file: Path | IO[bytes], source: str, script: bool = False) -> Any:
    """Read a file by torch's unpickler for weights, which calls nothing but what makes tensors.

    Args:
        file: of `torch.save`.
        source: for the message.
        script: whether it was a TorchScript archive, whose modules become `Inert`.
    """
    import torch

    known = {name: Inert for name in (*_IDLE, *_DICTS)} | {"collections.defaultdict": _mapping}
    try:
        held = torch.serialization.get_unsafe_globals_in_checkpoint(cast(Any, file))
    except Exception:  # the format used before 2020, which is read all the same, or damaged
        held = []
    if not isinstance(file, Path):
        file.seek(0)
    scripted = {name: Inert for name in held if script and name.startswith(_SCRIPT)}
    foreign = sorted(set(held) - known.keys() - scripted.keys())
    if foreign:
        raise InputError(_refusal(source, foreign[0]))
    allowed: list[Any] = [(stand_in, name) for name, stand_in in {**known, **scripted}.items()]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises nearly everything for a damaged file
        why = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")[2]
        raise InputError(_refusal(source, why[:120])) from error


def _refusal(source: str, what: str) -> str:
    return (
        f"{source}: the file is damaged, or holds more than tensors, numbers and text ({printable(what)}); objects of other "
        "classes could run code when they are made, so nothing of it was run. Where you trust the file, save its tensors alone: "
        "torch.save(checkpoint['state_dict'], FILE)."
    )


def _refuse_bomb(file: Path, source: str) -> None:
    """Refuse an archive that unpacks to much more than it is: torch stores weights as they are, without compression.

    Raises:
        InputError: naming the sizes.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        whole = sum(entry.file_size for entry in archive.infolist())
    if whole > 2 * file.stat().st_size + 2**20:
        raise InputError(
            f"{source}: {file.name} unpacks from {file.stat().st_size / 2**20:.1f} to {whole / 2**20:.1f} MB, as no file of "
            "weights does; nothing of it was read."
        )


def _is_script(file: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _without_code(file: Path, target: IO[bytes]) -> None:
    """Copy a TorchScript archive without its code and constants, which makes it a file of `torch.save`."""
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(target, "w") as plain:
        for entry in archive.infolist():
            inner = entry.filename.partition("/")[2]
            if inner in ("data.pkl", "version", "byteorder", ".data/serialization_id") or inner.startswith("data/"):
                with archive.open(entry) as stream, plain.open(entry.filename, "w", force_zip64=True) as copy:
                    while part := stream.read(2**22):
                        copy.write(part)
    target.seek(0)


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Find the tensors of a module by their names in its state dictionary."""
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Inert):
        yield from _tensors(value.state, name)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}" if name else str(key))
