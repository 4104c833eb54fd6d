"""One process at a time writes to a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from apd.errors import InputError
from apd.util.files import leftovers, remove_leftovers, writing

LOCK = ".lock"
"""Name of the file in the folder; there as long as a process holds the lock, or was killed while it did."""
_TRIES = 5


class FolderLock:
    """Keeps other processes from writing to a folder; the system frees the lock of a process that was killed.

    Args:
        folder: is made when the lock is taken.
        way_out: ends the message for who finds the folder taken.
        again: whether a thread that holds it may take it again; then it holds it until it has released it as often.
        entry: name of the one file or folder in it that is kept from them; by default everything in it.
    """

    def __init__(
        self, folder: Path, way_out: str = "wait for its end.", *, again: bool = False, entry: str = ""
    ) -> None:
        self.folder, self.way_out, self.again = folder, way_out, again
        self.place, self.name = (folder / entry, f".{entry}{LOCK}") if entry else (folder, LOCK)
        self._lock: BaseFileLock | None = None

    def acquire(self) -> None:
        """Take the lock, without waiting; nothing happens where this object has it.

        Raises:
            InputError: another process has it, or the folder cannot be written.
        """
        if self._lock is not None:
            return
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder.resolve() / self.name, timeout=0, is_singleton=self.again)
            for _ in range(_TRIES):
                with suppress(Timeout):
                    lock.acquire()
                    self._lock = lock
                    return
                if (self.folder / self.name).exists():  # else its holder has removed it meanwhile
                    break
        raise InputError(f"Another apd process is writing to {self.place}; {self.way_out}")

    def release(self) -> None:
        """Free the lock and remove its file; nothing happens where this object does not have it."""
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        with suppress(OSError):  # the folder may have gone
            if lock.lock_counter == 1:
                Path(lock.lock_file).unlink(
                    missing_ok=True
                )  # while it is held: who opens it later finds that it has gone
            lock.release()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock for a while.

        Raises:
            InputError: see `acquire`.
        """
        self.acquire()
        try:
            yield
        finally:
            self.release()


@contextmanager
def output_lock(path: Path) -> Iterator[None]:
    """Keep other processes from writing a file or folder for a while; what killed ones left half-written goes first.

    Args:
        path: a file or folder in a folder that is made if it is not there, and in which others may write others meanwhile.

    Raises:
        InputError: another process is writing it, or its folder cannot be written.
    """
    place = Path(os.path.abspath(path))
    with FolderLock(path.parent, "wait for its end, or choose another --output.", entry=place.name).held():
        for file in leftovers(place):
            with suppress(OSError):
                file.unlink()
        yield


def tidy(folder: Path) -> None:
    """Remove what killed processes have left in a folder and those below it: temporary files, and locks that nobody holds.

    Who calls it holds the folder's lock. Folders below it that others hold are left alone.
    """
    busy = []
    for place in [file.parent for file in folder.rglob(LOCK) if file.parent != folder]:
        try:
            with FolderLock(place).held():
                pass
        except InputError:
            busy.append(place)
    remove_leftovers(folder, busy)
