"""Measure each model: the evaluation with its checks, AutoAttack's flags, and the indicators of attack failure."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from apd.attacks import AttackBatch, LibraryAttack, ThreatModel
from apd.attacks.autoattack import _check_defence, _flags
from apd.errors import ApdError
from apd.evaluation import evaluate_tensors, parse_settings
from apd.evaluation.checks import BLACK_BOX
from apd.util.files import write_atomic
from benchmarks.defences.indicators import indicators
from benchmarks.defences.planted import PLANTED, plant
from benchmarks.defences.subjects import Subjects

ATTACK = "apgd-ce+dlr"
LIBRARY = ("apgd-ce", "apgd-t", "square")
"""Parts of AutoAttack that ran for its column; FAB, which finds minimal distances and raises no flag, is left out."""

STOPS = "stops with an error"


@dataclass(frozen=True)
class Row:
    """A model and what was noticed.

    Args:
        name: of the defence or of the honest model.
        kind: of defence; ``honest``.
        clean, attacked: accuracies in percent; None where the evaluation was refused.
        caught: health checks that failed.
        library: AutoAttack's flags, and ``black-box`` where Square found more; None where it did not run.
        indicators: those that fired.
        refused: the error, where there is no result.
    """

    name: str
    kind: str
    clean: float | None
    attacked: float | None
    caught: list[str]
    library: list[str] | None
    indicators: list[str]
    refused: str | None = None


def measure(subjects: Subjects, file: Path, planted: Sequence[str] | None, library_images: int) -> list[Row]:
    """Measure what the file does not hold yet; AutoAttack alone for rows that lack only that.

    Args:
        subjects: the models and images.
        file: keeps the rows, one after the other.
        planted: defences; None for all of them and the honest models.
        library_images: images for AutoAttack; 0 leaves it out.
    """
    kept = json.loads(file.read_text())["rows"] if file.exists() else []
    rows = {row["name"]: Row(**row) for row in kept}
    about = {"attack": ATTACK, "eps": subjects.eps, "images": len(subjects.images), "library_images": library_images}
    models = [(name, "honest") for name in subjects.honest] if not planted else []
    models += [(name, PLANTED[name][0]) for name in (PLANTED if planted is None else planted)]
    for name, kind in models:
        row = rows.get(name)
        if row is None:
            row = _row(subjects, name, kind)
        if library_images and row.library is None and row.refused is None:
            row = replace(row, library=_library(subjects, name, kind, library_images))
        if row is not rows.get(name):
            rows[name] = row
            print(row, flush=True)
            write_atomic(file, json.dumps({**about, "rows": [asdict(each) for each in rows.values()]}, indent=1) + "\n")
    return list(rows.values())


def _model(subjects: Subjects, name: str, kind: str) -> nn.Module:
    """A new model each time, as some keep a state; what is random is random from one seed."""
    torch.manual_seed(0)
    return subjects.honest[name] if kind == "honest" else plant(name, subjects.case)


def _row(subjects: Subjects, name: str, kind: str) -> Row:
    settings = parse_settings({"attacks": ATTACK, "eps": repr(subjects.eps), "quiet": True, "batch_size": 64})
    try:
        result = evaluate_tensors(_model(subjects, name, kind), subjects.images, subjects.class_names, settings)
    except ApdError as error:
        return Row(name, kind, None, None, [], None, [], refused=str(error))
    caught = [check.name for check in result.checks if check.passed is False and not check.warns]
    right = result.robust_mask("clean").nonzero().flatten()
    x, labels = subjects.case.x[right], subjects.case.labels[right]
    fired: list[str] = []
    if len(x):
        found = indicators(_plain(_model(subjects, name, kind)), x, labels, ThreatModel(subjects.eps))
        fired = [indicator for indicator, fires in found.items() if fires]
    return Row(name, kind, result.clean, result.worst.accuracy, caught, None, fired)


def _plain(model: nn.Module) -> nn.Module:
    frozen = getattr(model, "frozen", None)
    return model if frozen is None else frozen()


def _library(subjects: Subjects, name: str, kind: str, images: int) -> list[str]:
    """AutoAttack's own flags on some right images, whether Square fools what APGD did not, and whether it stops with an error."""
    with torch.no_grad():
        answers = _plain(_model(subjects, name, kind))(subjects.case.x)
    right = (answers.argmax(dim=-1) == subjects.case.labels).nonzero().flatten()[:images]
    x, labels = subjects.case.x[right], subjects.case.labels[right]
    model, threat = _plain(_model(subjects, name, kind)), ThreatModel(subjects.eps)
    found: list[str] = []
    standing = AttackBatch(x, labels, [str(i) for i in range(len(x))])
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(), torch.no_grad(), _flags() as flags:
            warnings.simplefilter("ignore")
            _check_defence(model, x, labels)
        found += list(flags)
        for name in LIBRARY:
            if len(standing) == 0:
                break
            attacked = LibraryAttack(name)(model, standing, threat)
            found += list(attacked.flags)
            with torch.no_grad():
                robust = model(attacked.images).argmax(dim=-1) == standing.labels
            if name == "square" and int((~robust).sum()) > BLACK_BOX * len(x):
                found.append("black-box")
            standing = standing.select(robust.nonzero().flatten())
    except RuntimeError as error:
        print(f"AutoAttack stops: {error}")
        found.append(STOPS)
    return list(dict.fromkeys(found))
