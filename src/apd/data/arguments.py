"""Arguments of `apd.load_data` as settings, without the checks that whatever reads a value makes in the arguments' own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from apd.data.settings import DataSettings
from apd.errors import InputError
from apd.util.text import short


def unvalidated(**values: Any) -> DataSettings:
    """Settings that are not validated: what reads a value refuses it, in the words of `load_data`'s arguments.

    Raises:
        InputError: unlabelled images, shots and classes that do not fit together.
    """
    _check_kinds(values)
    whole = {name: int(value) for name, value in values.items() if isinstance(value, np.integer)}
    settings = DataSettings.model_construct(**{**values, **whole})
    try:
        settings.check_unlabelled()
    except ValueError as error:
        raise InputError(f"{error}.") from error
    return settings


def _check_kinds(values: Mapping[str, Any]) -> None:
    """Refuse arguments of another type where nothing that reads them would say so.

    Raises:
        InputError: which.
    """
    columns, memory, names, seed = (values.get(name) for name in ("columns", "memory_gb", "class_names", "seed"))
    if columns is not None and not (isinstance(columns, list | tuple) and [*map(type, columns)] == [str, str]):
        raise InputError(f"columns must be two names, of the image and of the label column, got {columns!r}.")
    if memory is not None and not (
        isinstance(memory, int | float | np.number) and not isinstance(memory, bool) and memory >= 0
    ):
        raise InputError(f"memory_gb must be a number of 0 or more, got {memory!r}.")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0):
        raise InputError(f"seed must be a whole number of 0 or more, got {seed!r}.")
    if isinstance(names, tuple) and (odd := [name for name in names if not isinstance(name, str)]):
        raise InputError(f"class_names must be texts, got {short(odd[0])}.")
