"""Which versions a number was made with."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

__version__ = "0.1.0"

_LIBRARIES = ("torch", "transformers", "safetensors", "accelerate", "numpy", "pillow", "pyautoattack", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of apd, Python and the libraries that a result depends on."""
    return dict(_found())


@cache
def _found() -> dict[str, str]:
    """Read once a process, because it takes a good 10 ms."""
    libraries = {name: metadata.version(name) for name in _LIBRARIES}
    return {"apd": __version__, "python": platform.python_version(), **libraries}
