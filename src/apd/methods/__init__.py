"""The methods, one file each; the registry is a table."""

from __future__ import annotations

from apd.errors import InputError, nearest
from apd.methods.apd import APD
from apd.methods.base import Method, MethodSettings, Step
from apd.methods.fap import FAP
from apd.methods.vlp import VLP, AdvVLP

__all__ = ["METHODS", "Method", "MethodSettings", "Step", "find_method"]

METHODS: dict[str, type[Method]] = {"apd": APD, "advvlp": AdvVLP, "fap": FAP, "vlp": VLP}


def find_method(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        InputError: for an unknown name.
    """
    if name not in METHODS:
        raise InputError(f"No method {name!r}. {nearest(name, METHODS)}")
    return METHODS[name]
