"""Do one job: train or resume, evaluate, and record the outcome of each image."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from apd.bench.loaded import dataset, encoder
from apd.bench.plan import Job
from apd.bench.protocols import WORST, EvalSpec
from apd.errors import InputError
from apd.evaluation import Result, evaluate
from apd.models.classifier import PromptedCLIP
from apd.runs.folder import Run
from apd.runs.load import load_run
from apd.training.start import start_training
from apd.util.device import pick_device
from apd.util.files import read_json, write_atomic
from apd.util.json_shape import NUMBER, TEXT, Table, check_shape
from apd.util.text import one_line
from apd.util.versions import __version__, versions


@dataclass(frozen=True)
class EvalOutcome:
    """The outcome of one evaluation, image by image.

    Args:
        images: hash of the images' ids and labels; equal for classifiers that saw the same images.
        right: under ``clean``, each attack and ``worst``: a 1 or a 0 per image.
        seconds: time it took, earlier starts included.
        apd: version that made it.
        reliable: whether its health checks trust it; None where none ran (no attack, or an older version).
        because: why not.
    """

    images: str
    right: Mapping[str, str]
    seconds: float
    apd: str = ""
    reliable: bool | None = None
    because: Sequence[str] = ()

    def accuracy(self, attack: str) -> float:
        """Share of images that are right under ``attack``, in percent."""
        marks = self.right[attack]
        return 100 * marks.count("1") / len(marks)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job.

    Args:
        job: the job's id.
        label: for people.
        seconds: time that training took, in all its starts.
        validation: accuracy on the validation split at the end of training, in percent.
        evals: the evaluations by hash.
        versions: what the training was made with; without one, the first evaluation.
    """

    job: str
    label: str
    seconds: float = 0.0
    validation: Mapping[str, float] = field(default_factory=dict)
    evals: Mapping[str, EvalOutcome] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def made_with(self, evals: Iterable[str]) -> set[str]:
        """Versions of apd that made the training and these evaluations."""
        found = {self.versions.get("apd", ""), *(self.evals[key].apd for key in evals if key in self.evals)}
        return found - {""}

    def missing(self, job: Job) -> dict[str, EvalSpec]:
        """The evaluations of the job that have no outcome yet."""
        return {key: spec for key, spec in job.evals.items() if key not in self.evals}


def outcome_file(folder: Path, job: str) -> Path:
    """The file that keeps a job's outcome."""
    return folder / "outcomes" / f"{job}.json"


_FILE_KEYS = {"evals": "views"}
"""Names in the file that are not those of `Outcome`."""
_SHAPE = {
    **dict.fromkeys(("job", "label"), TEXT),
    "seconds?": NUMBER,
    "validation?": Table((None, NUMBER)),
    "versions": Table(TEXT),
    "views": Table({"images": TEXT, "right": Table(TEXT), "seconds": NUMBER, "apd?": TEXT}),
}


def read_outcome(folder: Path, job: str) -> Outcome | None:
    """Read the outcome of a job; None if there is none.

    Raises:
        InputError: a damaged file.
    """
    file = outcome_file(folder, job)
    if not file.exists():
        return None
    way_out = "remove it to run it again"
    try:
        record = read_json(file, way_out)
        check_shape(record, _SHAPE, file, way_out)
        # An evaluation that names no version is as old as the rest.
        origin = {"apd": record["versions"].get("apd", "")}
        evals = {key: EvalOutcome(**{**origin, **found}) for key, found in record.pop("views").items()}
        if any(not re.fullmatch("[01]+", marks) for found in evals.values() for marks in found.right.values()):
            raise ValueError("right holds a 1 or a 0 per image")
        if any("clean" not in found.right or len({*map(len, found.right.values())}) > 1 for found in evals.values()):
            raise ValueError("right holds clean, and as many marks for it as for each attack")
        return Outcome(**record, evals=evals)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not the outcome of a run ({error}); {way_out}.") from error


def _write_outcome(folder: Path, outcome: Outcome) -> None:
    record = {_FILE_KEYS.get(key, key): value for key, value in asdict(outcome).items()}
    write_atomic(outcome_file(folder, outcome.job), json.dumps(record, indent=1) + "\n")


def do(job: Job, folder: Path, *, fresh: bool = False) -> Outcome:
    """Train if it is not trained yet, evaluate what is not evaluated yet; save and return the outcome.

    Args:
        job: what to do.
        folder: the bench's; everything of this job is below ``runs/ID`` and in ``outcomes/ID.json``.
        fresh: train from the start instead of resuming, unless the training is finished.
    """
    outcome = read_outcome(folder, job.id) or Outcome(job.id, job.label, versions=versions())
    missing = outcome.missing(job)
    if not missing:
        return outcome
    clip = encoder(job.model, pick_device(job.device))
    trained = None
    if job.config is not None:
        path = _run_folder(job, folder)
        if not _is_whole(path):
            data = dataset(job.config.data)
            start_training(job.config, clip=clip, data=data, output=path, resume=not fresh, overwrite=fresh, quiet=True)
        trained = load_run(path, encoder=clip)
        outcome = _with_training(outcome, Run.open(path).manifest)
    for key, spec in missing.items():
        found = _evaluated(job, spec, trained, folder)
        outcome = replace(outcome, evals={**outcome.evals, key: found})
        _write_outcome(folder, outcome)
    return outcome


def _with_training(outcome: Outcome, manifest: Mapping[str, Any]) -> Outcome:
    """The outcome with what the run folder says of the training."""
    validation = {name: value for name, value in manifest["summary"].items() if name in ("val_clean", "val_robust")}
    # Runs made before the seconds were recorded keep what the outcome knew.
    seconds = manifest.get("seconds", outcome.seconds)
    return replace(outcome, seconds=seconds, validation=validation, versions=manifest["versions"])


def _run_folder(job: Job, folder: Path) -> Path:
    return folder / "runs" / job.id / "run"


def _is_whole(path: Path) -> bool:
    """Whether a finished training is there, with its prompts."""
    try:
        Run.open(path).load_prompts()
    except InputError:
        return False
    return True


def _classifier(job: Job, spec: EvalSpec, trained: PromptedCLIP | None) -> PromptedCLIP:
    """The trained classifier, or zero-shot CLIP, for the classes that an evaluation is about."""
    data = dataset(job.data[spec.data])
    names = data.classes(spec.classes).class_names
    templates = data.templates if spec.names == "own" else dataset(job.home).templates
    if trained is None:
        return PromptedCLIP(encoder(job.model, pick_device(job.device)), None, names, templates)
    if (trained.class_names, trained.templates) == (names, templates):
        return trained
    return trained.with_classes(names, templates)


def _evaluated(job: Job, spec: EvalSpec, trained: PromptedCLIP | None, folder: Path) -> EvalOutcome:
    started = time.monotonic()
    section = job.data[spec.data]
    result = evaluate(
        _classifier(job, spec, trained),
        dataset(section),
        store=folder / "runs" / job.id / "results",
        attacks=spec.attacks,
        eps=spec.eps,
        norm=spec.norm,
        limit=spec.limit,
        split=job.split,
        classes=spec.classes,
        corruption=spec.corruption,
        skip_bad_images=section.skip_bad_images,
        batch_size=128,  # APGD and AutoAttack depend on it, so the machine's pace may not decide
        control=False,
        checks=any(name != "clean" for name in spec.attacks),
        quiet=True,
    )
    attacks = dict.fromkeys(("clean", *spec.attacks, WORST))
    right = {name: "".join(str(int(mark)) for mark in result.robust_mask(name).tolist()) for name in attacks}
    # Attacks keep their own time, over all starts.
    seconds = max(time.monotonic() - started, sum(attack.seconds for attack in result.attacks.values()))
    because = result.unreliable_because
    return EvalOutcome(_fingerprint(result), right, round(seconds, 2), __version__, result.reliable, because)


def _fingerprint(result: Result) -> str:
    about = "\n".join(f"{id_}\0{label}" for id_, label in zip(result.ids, result.labels, strict=True))
    return hashlib.sha256(about.encode(errors="surrogateescape")).hexdigest()[:16]


@dataclass(frozen=True)
class Report:
    """How a job ended: with an outcome, or with an error in one line."""

    job: str
    outcome: Outcome | None = None
    error: str | None = None


def attempt(job: Job, folder: Path, threads: int) -> Report:
    """Do a job; if it fails, try once more from what is there. Only an interruption is raised.

    A training that fails again is started from scratch, in case what is there is damaged, unless it only lacks room.

    Args:
        job: what to do.
        folder: the bench's.
        threads: for torch; sums depend on it in the last digit, so every engine sets it.
    """
    torch.set_num_threads(threads)
    for tries in (1, 2, 3):
        try:
            return Report(job.id, do(job, folder, fresh=tries == 3))
        except Exception as error:
            reason = one_line(error) or "no reason given"
            message, kept = f"{type(error).__name__}: {reason}", _lacks_room(error)
        if tries == 2 and (kept or job.config is None or _is_whole(_run_folder(job, folder))):
            break
    return Report(job.id, error=message)


def _lacks_room(error: Exception) -> bool:
    """Whether the disk or the memory is full, which says nothing against what was saved."""
    cause = error.__cause__ or error
    if isinstance(cause, OSError):
        return cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
    return isinstance(cause, MemoryError | torch.OutOfMemoryError)
