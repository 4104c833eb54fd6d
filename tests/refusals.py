"""What people are told when something is refused: the names and values in it are checked, not its sentences."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from apd.errors import InputError, nearest

from .command_line import Answer


def contains(text: str, *names: str) -> bool:
    """Whether a text contains every name as a whole word; 4 is contained in neither 40 nor 4/255 nor 4.5."""

    def found(name: str) -> bool:
        before = r"(?<![\w/])" if name[0].isdigit() else r"\b" if name[0].isalnum() else ""
        after = r"(?![\w/]|\.\d)" if name[-1].isdigit() else r"\b" if name[-1].isalnum() else ""
        return re.search(before + re.escape(name) + after, text) is not None

    return all(map(found, names))


def meant(name: str) -> str:
    """How a message offers the nearest known name, in the words of the project."""
    return nearest(name, [name])


@contextmanager
def refused(*names: str, by: type[Exception] = InputError) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Expect an error of that type whose message is one line and contains every name, in any order and wording."""
    with pytest.raises(by) as told:
        yield told
    message = str(told.value)
    assert contains(message, *names), message
    assert not isinstance(told.value, InputError) or "\n" not in message


def check_error(answer: Answer, names: list[str]) -> None:
    """Check that a command was refused: exit code 2, and a last line that contains every name."""
    assert answer.code == 2, answer.err
    assert answer.out == ""
    errors = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert answer.err.rstrip().endswith(errors[0]), "the error is the last line; no traceback follows"
    assert contains(errors[0], *names), errors[0]


def fail_with(code: int) -> Callable[..., None]:
    """A function that fails with this error number of the operating system."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail
