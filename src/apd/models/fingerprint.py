"""Objects as text, so that two which hold something else are told apart: outcomes are kept under it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import FunctionType, MethodType

import numpy as np
from torch import Tensor, nn

from apd.models.classifier import FrozenClassifier, PromptedCLIP
from apd.models.encoder import DualEncoder
from apd.util.code import attributes_of, code_hash
from apd.util.tensors import sha256_of_tensor, sha256_of_weights

_DEPTH = 4
"""Objects within objects that are looked into."""


def told(value: object, depth: int = _DEPTH) -> str:
    """Return a value as text: tensors, models, functions and plain objects by what they hold, anything else by its ``repr``.

    >>> told({"steps": (3,), "eps": 0.5})
    "{'steps': (3,), 'eps': 0.5}"
    """
    if isinstance(value, Tensor | np.ndarray):
        return f"{value.dtype} {tuple(value.shape)} {sha256_of_tensor(value)[:16]}"
    if isinstance(value, nn.Module):
        clips = clips_within(value)
        clips += attributes_of(value)
        more = f" {hashlib.sha256(clips.encode()).hexdigest()[:16]}" if clips else ""
        return f"{type(value).__qualname__} {code_hash(value)} {sha256_of_weights(value)[:16]}{more}"
    if isinstance(value, FunctionType):
        return f"{value.__module__}.{value.__qualname__} {code_hash(value)}"
    if depth == 0:
        return type(value).__qualname__
    return _parts(value, depth - 1)


def clips_within(module: nn.Module) -> str:
    """Return what the CLIP classifiers within a module answer by besides its weights, as text; empty where there are none.

    The words of a `PromptedCLIP`, what an encoder does to pixels and cosines, and all that a `FrozenClassifier` is made of,
    which has no weights of its own.
    """
    found = []
    for name, part in module.named_modules():
        if isinstance(part, PromptedCLIP):
            found.append(f"{name} {part.class_names} {part.templates} {part.around_name()}")
        elif isinstance(part, FrozenClassifier):
            bound = part.bound
            held = told((bound.classes, bound.visual, bound.frame, bound.mixture))
            found.append(f"{name} {told(bound.encoder)} {held}")
        elif isinstance(part, DualEncoder):
            info = part.info
            found.append(f"{name} {info.preprocessing} {info.logit_scale} {info.logit_bias} {info.tokenizer_sha256}")
    return "".join(found)


def _parts(value: object, depth: int) -> str:
    if isinstance(value, list | tuple):
        held = ", ".join(told(each, depth) for each in value)
        return f"[{held}]" if isinstance(value, list) else f"({held}{',' * (len(value) == 1)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {told(each, depth)}' for key, each in value.items())}}}"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(told(each, depth) for each in value))}}}"
    if isinstance(value, partial):
        return f"{told(value.func, depth)} of {told(value.args, depth)} and {told(value.keywords, depth)}"
    if isinstance(value, MethodType):
        return f"{value.__name__} of {told(value.__self__, depth)}"
    if is_dataclass(value) and not isinstance(value, type):
        held = ", ".join(f"{f.name}={told(getattr(value, f.name), depth)}" for f in fields(value) if f.repr)
        return f"{type(value).__qualname__}({held})"
    if type(value).__repr__ is object.__repr__:  # an address, which says nothing
        return f"{type(value).__qualname__} {code_hash(value)} {told(getattr(value, '__dict__', {}), depth)}"
    return repr(value)
