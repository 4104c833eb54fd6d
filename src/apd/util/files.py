"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

from apd.errors import InputError
from apd.util.text import short
from apd.util.trust import note_code

AnyPath = str | PathLike[str]
"""A path as a caller gives it; a run stands for its folder (`apd.runs.folder.Run`)."""

_WAY_OUT = {
    errno.ENOSPC: "Free some space; what was saved before is whole, and training resumes with --resume.",
    errno.EDQUOT: "Free some of your quota; what was saved before is whole, and training resumes with --resume.",
    errno.EROFS: "Choose a folder that can be written.",
    errno.EACCES: "Choose a folder that you may write to.",
    errno.EPERM: "Choose a folder that you may write to.",
}


_REFUSALS = {
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EBADF,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
}
"""How file systems say that they do not synchronise folders, as some of networks and of Windows do not."""
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
_LFS = b"version https://git-lfs.github.com/spec/v1"
LARGEST_JSON = 64 * 2**20
"""Bytes of a JSON file: outcomes of half a million images; what is made of them takes at most twenty times as much memory."""
LARGEST_LIST = 16 * 2**20
"""Bytes of a list of names."""
LONGEST_LINE = 1000
"""Characters of a line of it."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's errors while writing ``path`` into one line.

    Raises:
        InputError: full disk, read-only place, a file where a folder should be, and the like.
    """
    try:
        yield
    except OSError as error:
        way_out = _WAY_OUT.get(error.errno or 0, "Choose another place.")
        raise InputError(f"Cannot write {path}: {error.strerror or error}. {way_out}") from error


def storage_error(error: OSError) -> Exception:
    """A full disk or a missing permission, met outside of our own writing, as one line; other errors as they are."""
    if error.errno not in _WAY_OUT:
        return error
    return InputError(f"{error.strerror} ({error.filename or 'no file named'}). {_WAY_OUT[error.errno]}")


def write_atomic(path: Path, content: bytes | str, *, keep: Path | None = None, sync_name: bool = True) -> None:
    """Write a file so that at any moment either the old or the new content is there, whole, also after a power failure.

    Args:
        path: the file.
        content: of the file; text is written as UTF-8.
        keep: the old content moves there once the new one is on the disk. A kill just then leaves it there alone.
        sync_name: wait until the folder is on the disk, too; False for many files, after which comes one `sync_folder`.

    Raises:
        InputError: the place cannot be written or is full; the old content stays, unless only the new name could not be
            synchronised.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        make_folder(path.parent)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)
            if sync_name:
                sync_folder(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that a power failure does not lose them with what is then written there."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: a file that was synchronised may lose a new name without it.

    Where the system or the file system cannot do so, nothing happens.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders; a folder may be one that only takes files
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Wait until the content of a file, and its name, are on the disk.

    Raises:
        InputError: the disk is full, or the like.
    """
    with writing(path):
        with open(path, "r+b") as file:  # Windows synchronises only what may be written
            os.fsync(file.fileno())
        sync_folder(path.parent)


def sync_tree(folder: Path) -> None:
    """Wait until a folder is on the disk with all the files and folders in it."""
    for place in [*folder.rglob("*"), folder]:
        if place.is_dir():
            sync_folder(place)
        else:
            with open(place, "r+b") as file:
                os.fsync(file.fileno())


def refuse_twice(paths: Sequence[AnyPath]) -> list[Path]:
    """Return where runs are, once it is clear that none is given twice.

    Raises:
        InputError: which is.
    """
    places = [user_path(path).resolve() for path in paths]
    for place, path in zip(places, paths, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{path} is given twice; give each run once.")
    return places


def names_of(places: Sequence[Path]) -> list[str]:
    """Name folders by their last part, or by as many as tell them apart.

    >>> names_of([Path("/runs/a/apd"), Path("/runs/b/apd")])
    ['a/apd', 'b/apd']
    """
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def user_path(text: AnyPath) -> Path:
    """Return a path with the home directory in place of ``~``.

    Raises:
        InputError: there is no home directory, as for a user that the system does not know; a name that is too long for a file.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        user = Path(text).parts[0].removeprefix("~")
        why = f"there is no user {user!r} here (a folder of that name: ./{text})" if user else "HOME is not set"
        raise InputError(f"{str(text)!r}: no home directory is known, as {why}; give the whole path.") from error
    try:
        path.lstat()
    except OSError as error:  # whatever else is wrong is said where the path is used
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{short(str(path))} is too long for the name of a file or folder.") from error
    except ValueError:
        pass
    return path


def remove_leftovers(folder: Path, besides: Sequence[Path] = ()) -> None:
    """Remove the temporary files of `write_atomic` that killed processes have left in a folder and those below it.

    Nobody may write there meanwhile (`apd.util.locks.FolderLock`), but below the folders ``besides``: their temporary files
    would go, too.
    """
    for file in folder.rglob(".*.tmp"):
        if _TEMPORARY.fullmatch(file.name) and not any(file.is_relative_to(place) for place in besides):
            with suppress(OSError):
                file.unlink()


def leftovers(path: Path) -> list[Path]:
    """The temporary files of `write_atomic` that killed processes have left of a file; see `remove_leftovers`."""
    found = path.parent.glob(f".{glob.escape(path.name)}.*.tmp")
    return [
        file for file in found if re.fullmatch(r"\d+", file.name.removeprefix(f".{path.name}.").removesuffix(".tmp"))
    ]


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what Git leaves in place of a large file until ``git lfs pull``."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with open(path, "rb") as file:
            return file.read(len(_LFS)) == _LFS
    except OSError:
        return False


def append_lines(path: Path, lines: str) -> None:
    """Append whole lines to a file and wait until they are on the disk; half a line that a kill left is cut off first.

    Raises:
        InputError: the place cannot be written or is full.
    """
    with writing(path):
        make_folder(path.parent)
        new = not path.exists()
        with open(path, "a+b") as file:
            if size := file.tell():
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
        if new:
            sync_folder(path.parent)


def read_json(file: Path, way_out: str, largest: int = LARGEST_JSON) -> Any:
    """The content of a JSON file that a stranger may have written; code that it names is not imported (`apd.util.trust`).

    Args:
        file: which is there.
        way_out: what to do about a damaged one, for the end of the message.
        largest: bytes that it may have.

    Raises:
        InputError: an unreadable, damaged or oversized file.
    """
    return parse_json(read_bounded(file, way_out, largest), file, way_out)


def parse_json(content: bytes | str, file: Path, way_out: str) -> Any:
    """What a JSON text of a file says; see `read_json`.

    Raises:
        InputError: a damaged text.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{file} is damaged ({why}); {way_out}.") from error
    note_code(found, str(file))
    return found


def read_bounded(file: Path, way_out: str, largest: int) -> bytes:
    """The bytes of a file, no more than ``largest``.

    Raises:
        InputError: an unreadable or oversized file, or what is not a file, such as a pipe, which never ends.
    """
    try:
        if not file.is_file():
            raise InputError(f"{file} is not a file; {way_out}.")
        with open(file, "rb") as stream:
            content = stream.read(largest + 1)
    except OSError as error:
        raise InputError(f"Cannot read {file}: {error.strerror}.") from error
    if len(content) > largest:
        raise InputError(f"{file} is larger than {largest / 2**20:g} MB, too large for what it should hold; {way_out}.")
    return content


def plain_file(file: Path, largest: int) -> Path:
    """Return a file that a stranger may have made, having looked at what it is before it is opened.

    Raises:
        InputError: a link, what is not a file, or more than ``largest`` bytes.
    """
    if file.is_symlink() or not file.is_file() or file.stat().st_size > largest:
        raise InputError(f"{file.name} is a link, not a file, or larger than {largest // 1_000_000} MB")
    return file


def read_lines(file: Path, place: str | None = None) -> list[str]:
    """The lines of a list, such as class names: UTF-8 text, without spaces around them and without empty ones.

    Args:
        file: the list.
        place: how messages call it; by default its path.

    Raises:
        InputError: an unreadable or oversized file, other than UTF-8 text, a line longer than `LONGEST_LINE`.
    """
    way_out = "it should be UTF-8 text, one entry a line"
    try:
        text = read_bounded(file, way_out, LARGEST_LIST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {place or file} ({error.reason}): {way_out}.") from error
    lines = [line.strip() for line in text.splitlines()]
    long = next((number for number, line in enumerate(lines, 1) if len(line) > LONGEST_LINE), None)
    if long is not None:
        raise InputError(f"line {long} of {place or file} has more than {LONGEST_LINE} characters: {way_out}.")
    return [line for line in lines if line]


def check_writable(folder: Path) -> None:
    """Make sure, before hours of work, that files can be written to a folder that may not exist yet.

    Raises:
        InputError: a file is in the way, the place is read-only or full.
    """
    with writing(folder):
        place = folder.absolute()
        while not place.exists():
            if place.is_symlink():
                raise FileNotFoundError(errno.ENOENT, f"{place} is a link to {os.readlink(place)}, which is not there")
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{place} is a file, not a folder")
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"0" * 4096)
            file.flush()
