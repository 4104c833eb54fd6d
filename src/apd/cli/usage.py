"""How commands say how they are used: their help, and wrong usage in one line."""

from __future__ import annotations

import inspect
import re

from apd.util.text import one_line


def unwrapped(docstring: str) -> str:
    r"""Return a command's docstring as help text: prose in one line per paragraph, for the terminal to wrap.

    Typer does so for the first paragraph alone, and keeps the source's line breaks in the others.

    >>> unwrapped("Do it.\n\n    Long prose\n    goes on.\n\n    Examples:\n      apd do\n      apd do it")
    'Do it.\n\nLong prose goes on.\n\nExamples:\n  apd do\n  apd do it'
    """
    return re.sub(r"(?<=\S)\n(?=\S)", " ", inspect.cleandoc(docstring))


def wrong_usage(error: Exception) -> str | None:
    """Say in one line what is wrong with a call, and where the right usage stands.

    Returns:
        None if the error is not one of click's, which typer has a copy of; an empty text if its help has been printed.
    """
    message = getattr(error, "format_message", None)
    if message is None:
        return None
    if type(error).__name__ == "NoArgsIsHelpError":
        return ""
    context = getattr(error, "ctx", None)
    command = "apd" if context is None else context.command_path
    return f"{one_line(message()).removesuffix('.')} ({command} -h shows how it is used)"
