"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from apd.errors import InputError

_WAY_OUT = {
    errno.ENOSPC: "Free some space; what was saved before is whole, and training goes on with --resume.",
    errno.EDQUOT: "Free some of your quota; what was saved before is whole, and training goes on with --resume.",
    errno.EROFS: "Choose a folder that can be written.",
    errno.EACCES: "Choose a folder that you may write to.",
    errno.EPERM: "Choose a folder that you may write to.",
}


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


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that at any moment either the old or the new content is there, whole.

    Raises:
        InputError: the place cannot be written or is full; the old content stays.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def yaml_problem(file: Path | str, error: yaml.YAMLError) -> str:
    """What is wrong with a YAML file, in one line: file, line, column and what the parser says."""
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error).partition("\n")[0]
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{file}{where}: no YAML: {problem}."


def check_writable(folder: Path) -> None:
    """Make sure, before hours of work, that files can be written to a folder that may not exist yet.

    Raises:
        InputError: a file is in the way, the place is read-only or full.
    """
    with writing(folder):
        place = folder.absolute()
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{place} is a file, not a folder")
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"0" * 4096)
            file.flush()
