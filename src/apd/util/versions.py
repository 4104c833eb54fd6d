"""Which versions a number was made with."""

from __future__ import annotations

import platform
from importlib import metadata

__version__ = "0.1.0"

_LIBRARIES = ("torch", "transformers", "safetensors", "accelerate", "numpy", "pillow", "pyautoattack", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of apd, Python and the libraries that a result depends on."""
    found = {"apd": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        found[name] = metadata.version(name)
    return found
