"""Temporary folders that do not stay for ever."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apd.errors import InputError
from apd.util.locks import LOCK, FolderLock


def folder_until_exit(prefix: str) -> Path:
    """Make a temporary folder that is removed when Python exits, and not before: its path may be in use until then."""
    place = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(_remove, place, os.getpid())
    return place


def _remove(place: Path, maker: int) -> None:
    if os.getpid() == maker:  # a fork inherits what its parent does at exit
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def folder_for_a_while(prefix: str) -> Iterator[Path]:
    """Make a temporary folder for the time of a block; those that killed processes have left behind are removed first."""
    for place in Path(tempfile.gettempdir()).glob(f"{prefix}*/{LOCK}"):
        _remove_if_left(place.parent)
    with tempfile.TemporaryDirectory(prefix=prefix) as name, FolderLock(Path(name)).held():
        yield Path(name)


def _remove_if_left(folder: Path) -> None:
    """Remove a folder of this user's whose lock nobody holds."""
    try:
        if folder.is_symlink() or (hasattr(os, "getuid") and folder.stat().st_uid != os.getuid()):
            return
        with FolderLock(folder).held():
            shutil.rmtree(folder, ignore_errors=True)
    except (InputError, OSError):
        return  # in use, or another process is removing it
