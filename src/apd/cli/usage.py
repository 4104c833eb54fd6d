"""How commands say how they are used: their help, and wrong usage in one line."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import sys
from collections.abc import Callable
from typing import Any

from apd.errors import InputError, nearest
from apd.util.pydantic_errors import wanted
from apd.util.text import one_line, short


def unwrapped(docstring: str) -> str:
    r"""Return a command's docstring as help text: prose in one line per paragraph, for the terminal to wrap.

    Typer does so for the first paragraph alone, and keeps the source's line breaks in the others.

    >>> unwrapped("Do it.\n\n    Long prose\n    goes on.\n\n    Examples:\n      apd do\n      apd do it")
    'Do it.\n\nLong prose goes on.\n\nExamples:\n  apd do\n  apd do it'
    """
    return re.sub(r"(?<=\S)\n(?=\S)", " ", inspect.cleandoc(docstring))


def at_home(arguments: list[str]) -> list[str]:
    """Put the home directory in place of ``~`` in ``--option=~/path``, where shells leave it: a folder ``~`` would be made."""
    home = os.path.expanduser("~")
    return [re.sub(r"^(--[\w-]+=)~(?=/|$)", lambda found: found[1] + home, argument) for argument in arguments]


def refuse_empty(arguments: list[str], switches: Callable[[], set[str]]) -> None:
    """Refuse an empty argument, such as that of an unset shell variable: as a path it would be the current folder.

    Args:
        arguments: what was given.
        switches: gives the options without a value, after which another argument stands.

    Raises:
        InputError: One is empty, or an option was given an empty value (``--output=``).
    """
    for index, argument in enumerate(arguments):
        option = re.fullmatch(r"(--[\w-]+)=", argument)
        if argument and not option:
            continue
        before = arguments[index - 1] if index else ""
        takes_it = before.startswith("--") and "=" not in before and before not in switches()
        name = option[1] if option else before if takes_it else f"Argument {index + 1}"
        raise InputError(
            f"{name} is empty: apd {shlex.join(arguments)}. If it comes from a shell variable, that is not set."
        )


def wrong_usage(error: Exception) -> str | None:
    """Say in one line what is wrong with a call, and where the right usage stands.

    Returns:
        None if the error is not one of click's, which typer has a copy of; an empty text if its help has been printed.
    """
    message = getattr(error, "format_message", None)
    if message is None:
        return None
    kind, context = type(error).__name__, getattr(error, "ctx", None)
    if kind == "NoArgsIsHelpError":
        return ""
    command = _typed() if context is None else context.command_path
    told = _IN_OUR_WORDS.get(kind, _other)(error, command) or message()
    return f"{one_line(told).removesuffix('.')} ({command} -h shows how it is used)"


def _typed() -> str:
    """The command as it was typed, for errors that do not say in which command they were met."""
    name = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
    return f"apd {name}".rstrip()


def _missing(error: Any, command: str) -> str | None:
    """A required argument or option that was not given, and what it stands for."""
    if error.param is None:
        return None
    about = getattr(error.param, "help", None) or ""
    return f"{command} needs {_name(error.param)}{': ' if about else ''}{about}"


def _bad_value(error: Any, command: str) -> str | None:
    """A value of another kind, or beyond what is allowed; typer has asked pydantic."""
    details: list[Any] = getattr(error.__cause__, "errors", list)()
    if error.param is None or not details:
        return None
    kinds = dict.fromkeys(wanted(each) for each in details)
    return f"{_name(error.param)} must be {' or '.join(kinds)}, got {short(details[0]['input'])}"


def _no_option(error: Any, command: str) -> str:
    """An option that the command has not, and the nearest of those it has."""
    known = error.possibilities or ()
    hint = f". Did you mean {' or '.join(sorted(known))}?" if known else ""
    return f"{command} has no option {short(error.option_name)}{hint}"


def _bad_option(error: Any, command: str) -> str | None:
    """An option without the value that it needs, or with one that it does not take."""
    if "does not take a value" in error.message:
        return f"{error.option_name} is a switch and takes no value; write {error.option_name} alone"
    return f"{error.option_name} needs a value" if "requires" in error.message else None


def _other(error: Any, command: str) -> str | None:
    """A command that there is not, or arguments beyond those that a command takes."""
    if unknown := re.match(r"No such command '(.*?)'", error.message):
        return f"There is no command {short(unknown[1])}. {nearest(unknown[1], error.ctx.command.list_commands(error.ctx))}"
    if extra := re.match(r"Got unexpected extra argument\S* \((.*)\)", error.message, re.DOTALL):
        return f"{command} takes no further argument, got {short(extra[1])}"
    return None


def _name(parameter: Any) -> str:
    """A parameter as it is written: ``--eps`` or, for an argument, ``RUN``."""
    if parameter.param_type_name == "option":
        return str(max(parameter.opts, key=len))
    return str(parameter.metavar or parameter.name.upper()).removesuffix("...")


_IN_OUR_WORDS = {
    "MissingParameter": _missing,
    "BadParameter": _bad_value,
    "NoSuchOption": _no_option,
    "BadOptionUsage": _bad_option,
}
"""Errors of click by their names: its own classes and typer's copies of them."""
