"""The place of an export: its files are made beside it, and go there once all of them are complete and on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apd.errors import InputError
from apd.util.files import check_writable, make_folder, sync_folder, sync_tree, writing
from apd.util.locks import output_lock
from apd.util.outputs import check_output_file
from apd.util.text import quoted

DESCRIPTION = "classifier.json"
"""The description in an export that is a folder."""


class Place:
    """Where an export goes: a folder with its description in it, or a file with its description beside it.

    ::

        DIR/NAME, DIR/NAME.json     what others read
        DIR/.NAME.lock              held while an export is made
        DIR/.NAME.apd-new/          what is being made; a kill leaves it, and the next export to this place removes it
        DIR/.NAME.apd-ready/        all of it, complete; a kill leaves it, and the next export to this place moves it there
        DIR/.NAME.apd-old/          the folder, or the description, that is being replaced

    Args:
        path: file or folder to write.
        is_folder: which of them.

    Raises:
        InputError: a path without a name, such as the working directory.
    """

    def __init__(self, path: Path, is_folder: bool) -> None:
        if not path.name:
            raise InputError(f"{path} is a folder that has to stay; give the export a name of its own, such as photos.")
        self.path, self.is_folder = path, is_folder
        self.description = path / DESCRIPTION if is_folder else path.with_name(f"{path.name}.json")
        self._new, self._ready, self._old = (
            path.with_name(f".{path.name}.apd-{part}") for part in ("new", "ready", "old")
        )

    @contextmanager
    def held(self, overwrite: bool) -> Iterator[Path]:
        """Hold the place while an export is made, after finishing what a killed process had ready for it.

        Args:
            overwrite: replace an export that is there.

        Yields:
            Where the file or the folder is to be made, in a folder that goes at the end.

        Raises:
            InputError: something is there and ``overwrite`` is not asked for, or something other than an export; another
                process is at work there; the place cannot be written.
        """
        if self.is_folder:
            check_writable(self.path.parent)
        else:
            check_output_file(self.path, "photos" + self.path.suffix)
        with output_lock(self.path):
            with writing(self.path):
                self._move()
                self._check(overwrite)
                make_folder(self._new)
            try:
                yield self._new / self.path.name
            finally:
                _remove(self._new)

    def put(self, description: str) -> None:
        """Move what was made to its place, with its description.

        Raises:
            InputError: it cannot be moved; what was there stays.
        """
        made = self._new / self.path.name
        about = made / DESCRIPTION if self.is_folder else made.with_name(self.description.name)
        with writing(self.path):
            about.write_text(description, encoding="utf-8")
            _as_readable_as_others(self._new)
            sync_tree(self._new)
            os.replace(self._new, self._ready)
            sync_folder(self.path.parent)
            self._move()

    def _move(self) -> None:
        """Move what is ready to its place; where a kill has stopped that, the rest of it."""
        _remove(self._new)
        names = (self.path.name, self.path.name + ".json")
        parts = [self._ready / name for name in names if (self._ready / name).exists()]
        if parts:
            # The old description goes first and the new one comes last: it never stands beside another's model.
            last = self.path.with_name(parts[-1].name)
            if last.exists():
                _remove(self._old)
                os.replace(last, self._old)
            try:
                for part in parts:
                    os.replace(part, self.path.with_name(part.name))
            except OSError:
                if parts[0].exists():  # none of them is there
                    if self._old.exists():
                        os.replace(self._old, last)
                    _remove(self._ready)
                raise
            sync_folder(self.path.parent)
        _remove(self._ready)
        _remove(self._old)

    def _check(self, overwrite: bool) -> None:
        path = self.path
        if path.is_dir() != self.is_folder and path.exists():
            raise InputError(f"{path} is a {'file' if self.is_folder else 'folder'}; choose another --output.")
        if self.is_folder and path.exists() and not self.description.is_file() and any(path.iterdir()):
            raise InputError(f"The folder {quoted(path)} holds other files and no export; choose another --output.")
        if self.is_folder and ((path / "results").exists() or (path / "run.json").exists()):
            raise InputError(
                f"The folder {quoted(path)} holds a run or evaluations, which would be removed; choose another --output."
            )
        if self.is_folder and (path / ".git").exists():
            raise InputError(
                f"{path} is a clone, whose history would be replaced too; export to another folder, and copy its files."
            )
        taken = next((file for file in (path, self.description) if file.exists()), None)
        if taken is not None and not overwrite:
            raise InputError(
                f"{taken} is there already; replace it with --overwrite (Python: overwrite=True), or choose another --output."
            )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _as_readable_as_others(new: Path) -> None:
    """Give files the permissions that new ones have here; some libraries make theirs unreadable for other users."""
    mask = os.umask(0)
    os.umask(mask)
    for file in new.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~mask)
