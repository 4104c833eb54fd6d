"""The log of a training, ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apd.util.files import writing


def append_metrics(file: Path, record: Mapping[str, Any]) -> None:
    """Append a line; numbers that JSON does not know (nan, inf) become null."""
    with writing(file), open(file, "a", encoding="utf-8") as stream:
        stream.write(json.dumps({key: _finite(value) for key, value in record.items()}) + "\n")


def cut_off(file: Path, size: int) -> None:
    """Shorten a file to ``size`` bytes, if it is there and longer."""
    if file.exists() and file.stat().st_size > size:
        with writing(file):
            os.truncate(file, size)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
