"""Make a CLIP robust to adversarial images by learning a few prompt vectors, and say honestly how robust it is.

import apd

clip = apd.load_clip("glyphs")
data = apd.load_data("digits", shots=16, seed=0)
run = apd.train(clip, data, method="apd", eps="1/255", output="runs/digits")
classifier = apd.load_run("runs/digits")
print(apd.evaluate(classifier, data, attacks=["autoattack"], eps="1/255"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apd.api import train
    from apd.classifier import PromptedCLIP
    from apd.clip import load_clip
    from apd.data import load_data
    from apd.errors import ApdError, InputError
    from apd.evaluation import evaluate, evaluate_run
    from apd.loading import load_run
    from apd.prompts import PromptSpec
    from apd.run import Run

__version__ = "0.1.0"

__all__ = [
    "ApdError",
    "InputError",
    "PromptSpec",
    "PromptedCLIP",
    "Run",
    "__version__",
    "evaluate",
    "evaluate_run",
    "load_clip",
    "load_data",
    "load_run",
    "train",
]

# Imported when first asked for, so that `import apd` and `apd --help` do not wait for torch.
_HOMES = {
    "ApdError": "apd.errors",
    "InputError": "apd.errors",
    "PromptSpec": "apd.prompts",
    "PromptedCLIP": "apd.classifier",
    "Run": "apd.run",
    "evaluate": "apd.evaluation",
    "evaluate_run": "apd.evaluation",
    "load_clip": "apd.clip",
    "load_data": "apd.data",
    "load_run": "apd.loading",
    "train": "apd.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'apd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
