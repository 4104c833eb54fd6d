"""Packages that are needed for some uses only, and how to install them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from apd.errors import InputError


def install_command(extra: str) -> str:
    """The command that installs an extra of this package.

    >>> install_command("hub")
    "pip install 'adversarial-prompt-distillation[hub]'"
    """
    return f"pip install 'adversarial-prompt-distillation[{extra}]'"


def import_extra(module: str, extra: str, use: str) -> Any:
    """Import a package that comes with an extra.

    Args:
        module: the package's name for ``import``.
        extra: in ``pyproject.toml``.
        use: what needs it, the subject of the message: ``--engine ray``.

    Returns:
        The module.

    Raises:
        InputError: it is not installed, or cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and (error.name or module).partition(".")[0] == module
        why = "which is not installed" if missing else f"which cannot be imported here ({error})"
        raise InputError(f"{use} needs the package {module}, {why}: {install_command(extra)}") from error
