"""Files that a person names for what a command finds."""

from __future__ import annotations

from pathlib import Path

from apd.errors import InputError
from apd.util.files import check_writable

_DEVICES = Path("/dev")


def check_output_file(file: Path, example: str) -> None:
    """Make sure, before the work, that a file can be written.

    Args:
        file: which may be there.
        example: a name, for the message.

    Raises:
        InputError: a folder; a device or a pipe such as ``/dev/null``, which the file would replace; a place that cannot be
            written.
    """
    if not file.name or file.is_dir():
        raise InputError(f"{file} is a folder; give a file in it, such as {file / example}.")
    if (file.exists() and not file.is_file()) or file.absolute().parent == _DEVICES:
        raise InputError(f"{file} is not a file, and would be replaced by one; choose another --output.")
    check_writable(file.parent)
