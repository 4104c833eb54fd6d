"""What the commands share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from apd.errors import InputError


def say(text: str) -> None:
    """A line for a person; standard output is kept for results."""
    print(text, file=sys.stderr)


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send what libraries print to standard error, so that standard output holds the result alone."""
    with redirect_stdout(sys.stderr):
        yield


def split_names(values: list[str]) -> list[str]:
    """Names from options that may be repeated and may hold commas.

    >>> split_names(["clean,pgd-20", "autoattack"])
    ['clean', 'pgd-20', 'autoattack']
    """
    return [name.strip() for value in values for name in value.split(",") if name.strip()]


def pick_device(name: str) -> str:
    """``auto`` as the best device there is; other names as they are.

    Raises:
        InputError: a name that torch does not know, or a device that is not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"No device {name!r} here: {str(error).splitlines()[0].rstrip('.')}. Use --device auto."
        ) from error
    return name
