"""Code named as ``package.module:name``: what the user names is imported, what only a file names is not.

Run folders, suites, settings and results come from strangers, too. Whatever reads such a file tells `note_code` of its content;
`apd.util.plugins.Registry` asks `refusal` before it imports.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from apd.util.text import printable

ENVIRONMENT = "APD_TRUST_CODE"
"""The environment variable that lets files name code; processes that are started inherit it."""
FLAG = "--trust-code"
"""The flag that sets it for one command."""
_SPEC = re.compile(r"(?!hf:)[A-Za-z_][\w.]*:[A-Za-z_<][\w.<>]*")
_WITHIN = re.compile(r"(?<![\w.])(?!hf:)[A-Za-z_][\w.]*:(?=[A-Za-z_<])")
"""The part of a name before its colon, wherever it stands; linear in the text, which may have megabytes."""
_REST = re.compile(r"[\w.<>]+")
_of_files: dict[str, str] = {}
_of_user: set[str] = set()


def is_spec(name: str) -> bool:
    """Whether a name has the form ``package.module:name``.

    >>> is_spec("my_models:Toy"), is_spec("hf:owner/name"), is_spec("C:/models")
    (True, False, False)
    """
    if _SPEC.fullmatch(name) is None:
        return False
    module = name.partition(":")[0]
    return ".." not in module and not module.endswith(".")


def trust(*values: object) -> None:
    """Let names be imported that the user wrote, whatever files name them as well.

    Args:
        values: arguments; texts are searched for names, mappings and lists too. A text that is a path to something does not
            name code: a stranger may call a folder anything.
    """
    _of_user.update(name for text in _texts(values) if not _is_path(text) for name in _names(text))


def trust_files() -> None:
    """Let files name code, in this process and those that it starts."""
    os.environ[ENVIRONMENT] = "1"


def note_code(content: object, place: str) -> None:
    """Remember all names of code in the content of a file, as the names of that place.

    Args:
        content: of JSON or YAML.
        place: the file, for messages.
    """
    for text in _texts([content]):
        for name in _names(text):
            _of_files.setdefault(name, place)


def refusal(name: str) -> str | None:
    """Say why a name must not be imported; None where it may: nobody but the user has named it, or files are trusted."""
    if name in _of_user or name not in _of_files or os.environ.get(ENVIRONMENT, "") not in ("", "0"):
        return None
    return (
        f"{printable(_of_files[name])} names code to import, {name!r}; code that only a file names is not run. If you trust it, "
        f"name it yourself (--model, --data, --method, --attack or --set; in Python give the object), or add {FLAG}."
    )


def _names(text: str) -> Iterator[str]:
    """All names of code in a text; one may follow another word and a colon, as in transfer:my_models:Toy."""
    if ":" in text:
        for found in _WITHIN.finditer(text):
            rest = _REST.match(text, found.end())
            yield found[0] + (rest[0] if rest else "")


def _texts(values: Iterable[object]) -> Iterable[str]:
    """All texts in nested mappings and lists, keys included."""
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value


def _is_path(text: str) -> bool:
    try:
        return os.path.lexists(Path(text).expanduser())
    except (OSError, ValueError, RuntimeError):
        return False
