"""Make a CLIP model robust to adversarial images by learning a few prompt vectors, and say honestly how robust it is.

import apd

clip = apd.load_clip("glyphs")
data = apd.load_data("digits", shots=16, seed=0)
run = apd.train(clip, data, method="apd", eps="14/255", output="runs/digits")
classifier = apd.load_run("runs/digits")
print(apd.evaluate(classifier, data, attacks=["autoattack"], eps="14/255"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from apd.util.versions import __version__

if TYPE_CHECKING:
    from apd.data import Dataset, load_data
    from apd.errors import ApdError, InputError
    from apd.evaluation import calibrate_run, evaluate, evaluate_classifier, evaluate_run
    from apd.evaluation.board import leaderboard
    from apd.evaluation.certified.certify import certify, certify_run
    from apd.evaluation.compare import compare_runs
    from apd.evaluation.precision import precision
    from apd.evaluation.verify import verify_run
    from apd.evaluation.wording.measure import evaluate_run_wording, evaluate_wording
    from apd.models import DualEncoder, load_clip
    from apd.models.classifier import PromptedCLIP
    from apd.models.prompts import PromptSpec
    from apd.runs.average import average_runs
    from apd.runs.folder import Run
    from apd.runs.imported import import_run
    from apd.runs.load import load_run
    from apd.training.start import train

__all__ = [
    "ApdError",
    "Dataset",
    "DualEncoder",
    "InputError",
    "PromptSpec",
    "PromptedCLIP",
    "Run",
    "__version__",
    "average_runs",
    "calibrate_run",
    "certify",
    "certify_run",
    "compare_runs",
    "evaluate",
    "evaluate_classifier",
    "evaluate_run",
    "evaluate_run_wording",
    "evaluate_wording",
    "import_run",
    "leaderboard",
    "load_clip",
    "load_data",
    "load_run",
    "precision",
    "train",
    "verify_run",
]

# Imported when first asked for, so that `import apd` and `apd --help` do not wait for torch.
_HOMES = {
    "ApdError": "apd.errors",
    "Dataset": "apd.data",
    "DualEncoder": "apd.models",
    "InputError": "apd.errors",
    "PromptSpec": "apd.models.prompts",
    "PromptedCLIP": "apd.models.classifier",
    "Run": "apd.runs.folder",
    "average_runs": "apd.runs.average",
    "calibrate_run": "apd.evaluation",
    "certify": "apd.evaluation.certified.certify",
    "certify_run": "apd.evaluation.certified.certify",
    "compare_runs": "apd.evaluation.compare",
    "evaluate": "apd.evaluation",
    "evaluate_classifier": "apd.evaluation",
    "evaluate_run": "apd.evaluation",
    "evaluate_run_wording": "apd.evaluation.wording.measure",
    "evaluate_wording": "apd.evaluation.wording.measure",
    "import_run": "apd.runs.imported",
    "leaderboard": "apd.evaluation.board",
    "load_clip": "apd.models",
    "load_data": "apd.data",
    "load_run": "apd.runs.load",
    "precision": "apd.evaluation.precision",
    "train": "apd.training.start",
    "verify_run": "apd.evaluation.verify",
}

_ROOMS = ("explore", "export", "serve")
"""Parts that are used under their own name, as in ``apd.export.onnx``."""


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"apd.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'apd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
