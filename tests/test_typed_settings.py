"""Settings as keyword arguments: the types that editors and mypy see are those of the settings that pydantic checks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytest
from pydantic import BaseModel

import apd
from apd.evaluation.certified.settings import CertifyOptions, CertifySettings
from apd.evaluation.options import Attack, EvaluationOptions
from apd.evaluation.settings import EvaluationSettings
from apd.evaluation.wording.settings import WordingOptions, WordingSettings
from apd.export.options import ExportOptions
from apd.export.settings import ExportSettings
from apd.settings import options
from apd.settings.train import AugmentSettings, OptimizerSettings, TrainSettings

SOURCES = Path(apd.__file__).parent
SECTIONS = {OptimizerSettings: options.OptimizerOptions, AugmentSettings: options.AugmentOptions}
WIDER: dict[Any, dict[str, Any]] = {
    options.TrainOptions: {"trackers": str | list[str]},
    WordingOptions: {"changes": tuple[str, ...] | str, "eps": str | float},
    ExportOptions: {"eps": str | float},
    EvaluationOptions: {
        "attacks": Attack | Sequence[Attack],
        "eps": str | float,
        "limit": int | Literal["auto", "all"] | None,
    },
}
"""Settings that Python takes in more forms than they are kept in."""


@pytest.mark.parametrize(
    ("typed", "settings", "arguments"),
    [
        (options.TrainOptions, TrainSettings, {"eps", "attack"}),
        (options.OptimizerOptions, OptimizerSettings, set()),
        (options.AugmentOptions, AugmentSettings, set()),
        (EvaluationOptions, EvaluationSettings, set()),
        (ExportOptions, ExportSettings, set()),
        (CertifyOptions, CertifySettings, set()),
        (WordingOptions, WordingSettings, set()),
    ],
)
def test_names_and_types_are_those_of_the_settings(typed: Any, settings: type[BaseModel], arguments: set[str]) -> None:
    wanted = {
        name: WIDER.get(typed, {}).get(name, SECTIONS.get(field.annotation, field.annotation))  # type: ignore[arg-type]
        for name, field in settings.model_fields.items()
        if name not in arguments
    }
    assert get_type_hints(typed) == wanted
    assert not typed.__required_keys__ and arguments <= settings.model_fields.keys()


WRONG = {
    "apd.train(clip, data, epss=1)": "epss",
    "apd.train(clip, data, optimizer={'lrr': 0.1})": "lrr",
    "apd.train(clip, data, precision='fp16')": "precision",
    "apd.evaluate(classifier, data, epss='1/255')": "epss",
    "apd.evaluate_run('run', limitt=3)": "limitt",
}
RIGHT = [
    "apd.train(clip, data, eps='1/255', epochs=2, optimizer={'lr': 0.1}, trackers='wandb')",
    "apd.evaluate(classifier, data, eps=0.1, attacks=['pgd-5', 'autoattack'], limit='all')",
    "apd.evaluate_run('run', attacks='pgd-5', limit=3)",
]


def test_mypy_rejects_a_misspelt_setting(tmp_path: Path) -> None:
    """With the files that the signatures stand in alone, as torch takes mypy a minute."""
    file = tmp_path / "mine.py"
    head = [
        "import apd",
        "def use(clip: apd.DualEncoder, data: apd.Dataset, classifier: apd.PromptedCLIP) -> None:",
    ]
    file.write_text("\n".join([*head, *(f"    {line}" for line in [*WRONG, *RIGHT])]) + "\n")
    needed = ["__init__", "training/start", "evaluation/__init__", "evaluation/measure", "evaluation/run_folder"]
    needed += ["evaluation/options", "settings/options", "attacks/threat"]
    command = [sys.executable, "-m", "mypy", "--config-file", os.devnull, "--follow-imports=skip", "--no-error-summary"]
    command += [f"--cache-dir={os.devnull}", str(file), *(str(SOURCES / f"{name}.py") for name in needed)]
    environment = {**os.environ, "MYPYPATH": str(SOURCES.parent)}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
    errors: dict[int, str] = {}
    for line in found.stdout.splitlines():
        if match := re.match(r".*mine\.py:(\d+): error: (.*)", line):
            errors[int(match[1])] = errors.get(int(match[1]), "") + match[2]
    first = len(head) + 1
    assert errors.keys() == set(range(first, first + len(WRONG))), found.stdout + found.stderr
    for number, word in enumerate(WRONG.values(), first):
        assert word in errors[number]
