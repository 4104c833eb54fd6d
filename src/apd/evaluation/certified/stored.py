"""Certifications as a run folder keeps them, ``RUN/results/certified-NAME.json``."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from apd.errors import InputError
from apd.evaluation.certified.result import Certified
from apd.evaluation.certified.settings import CertifySettings
from apd.evaluation.store import digest
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
    while (apart := _apart(file, found)) is not None:
        file = file.with_stem(f"{file.stem}-{apart}")
    write_atomic(file, found.to_json() + "\n")
    return file


def _apart(file: Path, found: Certified) -> str | None:
    """What tells a certification from the one that has its name: of a folder with other images, or with a control."""
    try:
        known = _read(file) if file.is_file() else None
    except InputError:  # damaged, and replaced
        return None
    if known is None:
        return None
    own, others = ({image.id for image in one.images} for one in (found, known))
    if known.data != found.data or (own != others and own.isdisjoint(others)):
        return digest({"data": found.data, "images": sorted(own)})
    return "no_control" if known.undefended is not None and found.undefended is None else None


def _read(file: Path) -> Certified:
    try:
        return Certified.model_validate_json(read_bounded(file, _WAY_OUT, LARGEST_JSON))
    except ValidationError as error:
        raise InputError(f"{file} is damaged; {_WAY_OUT}.") from error


def load_certified(run: Run) -> list[Certified]:
    """Read all certifications of a run, in the order of their files' names.

    Raises:
        InputError: a damaged file.
    """
    return [_read(file) for file in sorted(run.results.glob(f"{_PREFIX}*.json"))]
