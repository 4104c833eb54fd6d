"""Doing one job: train or go on, evaluate, and say what each image came to."""

from __future__ import annotations

import errno
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch

from apd.bench.plan import Job
from apd.bench.protocols import WORST, View
from apd.data import Dataset
from apd.data.dataset import Shots, Which
from apd.errors import InputError
from apd.evaluation import Result, evaluate
from apd.models import DualEncoder, load_clip
from apd.models.classifier import PromptedCLIP
from apd.runs.config import validate
from apd.runs.folder import Run
from apd.runs.load import load_run
from apd.training.batches import decode
from apd.training.loop import train
from apd.training.start import describe
from apd.util.device import pick_device
from apd.util.files import write_atomic
from apd.util.versions import __version__, versions


@dataclass(frozen=True)
class ViewOutcome:
    """One evaluation image by image.

    Args:
        images: hash of the images' ids and labels; equal for classifiers that saw the same images.
        right: under ``clean``, each attack and ``worst``: a 1 or a 0 for each image.
        seconds: that it took, earlier starts included.
        apd: version that made it.
    """

    images: str
    right: Mapping[str, str]
    seconds: float
    apd: str = ""

    def accuracy(self, attack: str) -> float:
        """In percent."""
        marks = self.right[attack]
        return 100 * marks.count("1") / len(marks)


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Args:
        job: its id.
        label: for a person.
        seconds: that training took, in all its starts.
        validation: accuracy on the validation split at the end of training, in percent.
        views: the evaluations, by hash.
        versions: of what the training was made with; without one, the first evaluation.
    """

    job: str
    label: str
    seconds: float = 0.0
    validation: Mapping[str, float] = field(default_factory=dict)
    views: Mapping[str, ViewOutcome] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def made_with(self, views: Iterable[str]) -> set[str]:
        """Versions of apd that the training and these evaluations were made with."""
        found = {self.versions.get("apd", ""), *(self.views[key].apd for key in views if key in self.views)}
        return found - {""}


def outcome_file(folder: Path, job: str) -> Path:
    """Where a job's outcome is kept."""
    return folder / "outcomes" / f"{job}.json"


def read_outcome(folder: Path, job: str) -> Outcome | None:
    """What is known of a job; None for nothing.

    Raises:
        InputError: a damaged file.
    """
    file = outcome_file(folder, job)
    if not file.exists():
        return None
    try:
        record = json.loads(file.read_text())
        # An evaluation that names no version is as old as the rest.
        origin = {"apd": record["versions"].get("apd", "")}
        views = {key: ViewOutcome(**{**origin, **view}) for key, view in record.pop("views").items()}
        return Outcome(**record, views=views)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is no outcome of a run ({error}); remove it to run it again.") from error


def do(job: Job, folder: Path, *, fresh: bool = False) -> Outcome:
    """Train where it is not trained yet, evaluate what is not evaluated yet; the outcome is saved and returned.

    Args:
        job: what to do.
        folder: of the bench; everything of this job is below ``runs/ID`` and in ``outcomes/ID.json``.
        fresh: where no finished training is, train from the start instead of going on.
    """
    known = read_outcome(folder, job.id) or Outcome(job.id, job.label, versions=versions())
    missing = {key: view for key, view in job.views.items() if key not in known.views}
    if not missing:
        return known
    trained = None
    if job.method is not None:
        trained, known = _trained(job, folder, known, fresh)
    for key, view in missing.items():
        found = _evaluated(job, view, trained, folder)
        known = replace(known, views={**known.views, key: found})
        write_atomic(outcome_file(folder, job.id), json.dumps(asdict(known), indent=1) + "\n")
    return known


def _trained(job: Job, folder: Path, known: Outcome, fresh: bool) -> tuple[PromptedCLIP, Outcome]:
    place, device = _run_folder(job, folder), pick_device(job.device)
    if not _is_whole(place):
        clip, source = _clip(job.model, device), job.sources[job.data]
        data = _data(job, job.data).classes(cast(Which, job.classes))
        drawn = {"shots": job.shots, "seed": job.seed, "templates": source.templates, "classes": job.classes}
        section = {
            "source": source.place,
            "skip_bad_images": source.skip_bad_images,
            "validation": source.validation,
            **drawn,
        }
        training = {**job.train, "device": device}
        raw = {"model": job.model, "data": section, "method": job.method, "train": training}
        config = validate(raw)
        images = decode(clip, data, source.skip_bad_images, show=False)
        run = Run.create(place, config, describe(clip, data, images, config), resume=not fresh, overwrite=fresh)
        train(clip, data, images, config, run, quiet=True)
    classifier, about = load_run(place, device=device, model=job.model), Run.open(place).manifest
    validation = {name: about["summary"][name] for name in ("val_clean", "val_robust")}
    # A run of before it kept its seconds: what was known of them.
    seconds = about.get("seconds", known.seconds)
    return classifier, replace(known, seconds=seconds, validation=validation, versions=about["versions"])


def _run_folder(job: Job, folder: Path) -> Path:
    return folder / "runs" / job.id / "run"


def _is_whole(place: Path) -> bool:
    """Whether a finished training with all that it left is there."""
    try:
        Run.open(place).load_prompts()
    except InputError:
        return False
    return True


@cache
def _clip(model: str, device: str) -> DualEncoder:
    return load_clip(model, device=device)


def _data(job: Job, name: str) -> Dataset:
    """All classes of a data set."""
    shots = cast(Shots, job.shots) if name == job.data else "all"
    return job.sources[name].load(shots, job.seed)


def _evaluated(job: Job, view: View, trained: PromptedCLIP | None, folder: Path) -> ViewOutcome:
    started = time.monotonic()
    data = _data(job, view.data)
    names = data.classes(view.classes).class_names
    templates = data.templates if view.names == "own" else _data(job, job.data).templates
    if trained is None:
        classifier = PromptedCLIP(_clip(job.model, pick_device(job.device)), None, names, templates)
    elif (trained.class_names, trained.templates) == (names, templates):
        classifier = trained
    else:
        classifier = trained.with_classes(names, templates)
    settings: dict[str, Any] = {"attacks": view.attacks, "eps": view.eps, "limit": view.limit}
    settings["batch_size"] = 128  # APGD and AutoAttack depend on it, so it may not be the machine's pace that decides
    skip = job.sources[view.data].skip_bad_images
    settings |= {"split": job.split, "classes": view.classes, "skip_bad_images": skip}
    if view.corruption is not None:
        settings["corruption"] = view.corruption
    store = folder / "runs" / job.id / "results"
    result = evaluate(classifier, data, store=store, control=False, checks=False, quiet=True, **settings)
    attacks = dict.fromkeys(("clean", *view.attacks, WORST))
    right = {name: "".join(str(int(mark)) for mark in result.robust_mask(name).tolist()) for name in attacks}
    # Attacks keep their own time, over all starts.
    seconds = max(time.monotonic() - started, sum(attack.seconds for attack in result.attacks.values()))
    return ViewOutcome(_fingerprint(result), right, round(seconds, 2), __version__)


def _fingerprint(result: Result) -> str:
    about = "\n".join(f"{id_}\0{label}" for id_, label in zip(result.ids, result.labels, strict=True))
    return hashlib.sha256(about.encode(errors="surrogateescape")).hexdigest()[:16]


@dataclass(frozen=True)
class Report:
    """How a job ended: with an outcome or with an error of one line."""

    job: str
    outcome: Outcome | None = None
    error: str | None = None


def attempt(job: Job, folder: Path, threads: int) -> Report:
    """Do a job; where it fails, go on once from what is there. Never raises but for an interruption.

    A training that fails even then is started afresh, in case what is there is damaged; not one that only lacks room.

    Args:
        job: what to do.
        folder: of the bench.
        threads: of torch; sums depend on it in the last digit, so every engine sets it.
    """
    torch.set_num_threads(threads)
    for tries in (1, 2, 3):
        try:
            return Report(job.id, do(job, folder, fresh=tries == 3))
        except Exception as error:
            reason = " ".join(str(error).split()) or "no reason given"
            message, kept = f"{type(error).__name__}: {reason}", _lacks_room(error)
        if tries == 2 and (kept or job.method is None or _is_whole(_run_folder(job, folder))):
            break
    return Report(job.id, error=message)


def _lacks_room(error: Exception) -> bool:
    """Whether the disc or the memory is full, which says nothing against what was saved."""
    cause = error.__cause__ or error
    if isinstance(cause, OSError):
        return cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
    return isinstance(cause, MemoryError | torch.OutOfMemoryError)
