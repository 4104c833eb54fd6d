"""The settings of an export as keyword arguments, so that editors complete them and mypy knows a misspelt one."""

from __future__ import annotations

from typing import TypedDict

from apd.export.settings import Precision


class ExportOptions(TypedDict, total=False):
    """See `apd.export.settings.ExportSettings`, which has the defaults; a test compares names and types."""

    precision: Precision
    open_vocabulary: bool
    overwrite: bool
    model: str | None
    check_images: int
    measure: int | None
    attack: str
    eps: str | float
    license: str
