"""Certifications as a run folder keeps them, ``RUN/results/certified-NAME.json``."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from apd.errors import InputError
from apd.evaluation.certified.result import Certified
from apd.evaluation.certified.settings import CertifySettings
from apd.runs.folder import Run
from apd.runs.output import file_name
from apd.util.files import LARGEST_JSON, read_bounded, write_atomic

_PREFIX = "certified-"
_WAY_OUT = "remove it and certify again: apd certify RUN"


def save_certified(run: Run, found: Certified) -> Path:
    """Keep a certification in the run, in place of one under the same circumstances."""
    name = f"{found.data}-{found.split}-{found.classes}-sigma{found.sigma:g}-seed{found.seed}-n{found.n_images}"
    usual = CertifySettings()
    # A quick certification does not replace one that took hours.
    name += "".join(
        f"-{key}_{getattr(found, key):g}" for key in ("n0", "n", "alpha") if getattr(found, key) != getattr(usual, key)
    )
    name += "-attack" if any(point.attacked for point in found.curve) else ""
    file = run.results / f"{_PREFIX}{file_name(name)}.json"
    write_atomic(file, found.to_json() + "\n")
    return file


def load_certified(run: Run) -> list[Certified]:
    """Read all certifications of a run, in the order of their files' names.

    Raises:
        InputError: a damaged file.
    """
    found = []
    for file in sorted(run.results.glob(f"{_PREFIX}*.json")):
        try:
            found.append(Certified.model_validate_json(read_bounded(file, _WAY_OUT, LARGEST_JSON)))
        except ValidationError as error:
            raise InputError(f"{file} is damaged; {_WAY_OUT}.") from error
    return found
