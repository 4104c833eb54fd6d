"""Hashes of code from elsewhere: what is kept of it must not be taken for that of other code."""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from sysconfig import get_path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from apd.util.tensors import sha256_of_tensor, sha256_of_weights

_PLAIN = (bool, int, float, complex, str, bytes, tuple, type(None), Tensor, np.ndarray, nn.Module)
_INSTALLED = {"site-packages", "dist-packages"}
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_LIBRARY = Path(get_path("stdlib")).resolve()


def code_hash(found: object) -> str:
    """Return a hash of the source of a function or class, of an object's class, and of what a closure holds.

    Code that it uses by name counts with it, and what that uses: base classes, functions, classes and plain values, as far
    as they are not of an installed package. Tensors and models count by what they hold; what has no source, such as a part of
    a C library, counts as its ``repr``.
    """
    start = found if isinstance(found, type | FunctionType) else type(found)
    cells = _cells(found)
    held = [value for value in cells if not isinstance(value, type | FunctionType)]
    todo = [value for value in (start, *cells) if isinstance(value, type | FunctionType)]
    seen, used = {*todo}, set[str]()
    while todo:
        one = todo.pop()
        within = [] if one is start else [(one.__qualname__, value) for value in _cells(one)]
        for name, value in [*within, *_defaults(one), *(_named(one) if _is_own(_module(one)) else ())]:
            if isinstance(value, _PLAIN) or _has_content(value) or _is_plain(value):
                used.add(f"{name}={_told(value)}")
            elif isinstance(value, type | FunctionType) and value not in seen and _is_own(_module(value)):
                seen.add(value)
                todo.append(value)
    used |= {_source(one, one.__qualname__) for one in seen - {start}}
    own = _source(start, repr(found))
    kept = f"[{', '.join(map(_told, held))}]" if held else ""
    return hashlib.sha256(f"{own}{kept}{''.join(sorted(used))}".encode()).hexdigest()[:16]


def attributes_of(module: nn.Module, installed: bool = False) -> str:
    """Numbers and words that the parts of a model which are somebody's own code hold besides weights, as text.

    Args:
        module: the model.
        installed: also the numbers of parts from installed packages, whose ``repr`` need not show them. Not their words, such as
            the folder that a model was loaded from.
    """
    found = []
    for name, part in module.named_modules():
        own = is_own_code(type(part))
        if own or installed:
            kinds = bool | int | float | str if own else bool | int | float
            known = {key: value for key, value in vars(part).items() if key[0] != "_" and key != "training"}
            plain = {key: value for key, value in known.items() if isinstance(value, kinds)}
            found += [f"{name} {plain}"] if plain else []
    return "".join(found)


def _cells(found: object) -> list[Any]:
    """What a closure holds."""
    return [cell.cell_contents for cell in getattr(found, "__closure__", None) or ()]


def _defaults(found: type | FunctionType) -> list[tuple[str, Any]]:
    """Default arguments that the source does not tell: models and tensors."""
    if isinstance(found, type):
        return []
    values = [*(found.__defaults__ or ()), *(found.__kwdefaults__ or {}).values()]
    return [(found.__qualname__, value) for value in values if _has_content(value)]


def _has_content(value: object) -> bool:
    """Whether a value is, or contains, what its ``repr`` does not identify; functions and classes count in containers only."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(isinstance(one, FunctionType | type) or _has_content(one) for one in value)
    return isinstance(value, Tensor | np.ndarray | nn.Module)


def _is_plain(value: object) -> bool:
    """Whether a value is a list or the like of numbers, texts and such lists, as settings in a module are."""
    if isinstance(value, dict):
        return all(map(_is_plain, (*value.keys(), *value.values())))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _told(value: object) -> str:
    """A value as text; a model with its weights, and a tensor, of which the ``repr`` shows only some numbers, by all of them."""
    if isinstance(value, list | tuple | set | frozenset | dict) and _has_content(value):
        entries = value.items() if isinstance(value, dict) else value
        return f"{type(value).__name__} of {', '.join(map(_told, entries))}"
    if isinstance(value, nn.Module):
        return f"{value!r} {sha256_of_weights(value)}{attributes_of(value)}"
    if isinstance(value, Tensor | np.ndarray):
        return f"{value.dtype} {tuple(value.shape)} {sha256_of_tensor(value)}"
    if isinstance(value, FunctionType | type):  # in a list or the like; its `repr` has an address
        return f"{value.__module__}.{value.__qualname__} {_source(value, '') if _is_own(_module(value)) else ''}"
    if isinstance(value, set | frozenset):  # in no order of its own
        return f"{type(value).__name__} of {', '.join(sorted(map(_told, value)))}"
    return _ADDRESS.sub("", repr(value))


def _source(found: type | FunctionType, otherwise: str) -> str:
    try:
        return inspect.getsource(found)
    except (OSError, TypeError):
        return otherwise


def _module(found: type | FunctionType) -> ModuleType | None:
    return sys.modules.get(str(found.__module__))


def is_own_code(found: Callable[..., Any]) -> bool:
    """Whether a class or function is somebody's own: of a script, notebook or folder, not of an installed package or this one."""
    return _is_own(sys.modules.get(str(getattr(found, "__module__", None))))


def _is_own(module: ModuleType | None) -> bool:
    """Whether it is such a class's module."""
    if module is None or module.__name__ == "__main__":
        return module is not None
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.partition(".")[0] == "apd":
        return False
    path = Path(file).resolve()
    return not (_INSTALLED.intersection(path.parts) or path.is_relative_to(_LIBRARY))


def _named(found: type | FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function names of its module, and of other own modules; what a class does in its methods, and its bases."""
    if isinstance(found, type):
        yield from ((base.__name__, base) for base in found.__bases__)
        functions = [inspect.unwrap(each) for each in map(_function, vars(found).values()) if each is not None]
    else:
        functions = [inspect.unwrap(found)]
    for function in functions:
        if not isinstance(function, FunctionType):
            continue
        names = list(_names(function.__code__))
        known = {name: function.__globals__[name] for name in names if name in function.__globals__}
        yield from known.items()
        for module in known.values():
            if isinstance(module, ModuleType) and _is_own(module):
                yield from ((name, vars(module)[name]) for name in names if name in vars(module))


def _function(value: object) -> Callable[..., Any] | None:
    """The function behind an attribute of a class, if there is one."""
    value = getattr(value, "__func__", value)
    value = value.fget if isinstance(value, property) else value
    return value if isinstance(value, FunctionType) else None


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
