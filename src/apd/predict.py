"""From image files to named classes with probabilities."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apd.data.decode import decode_all
from apd.data.sources.folder import IMAGE_SUFFIXES
from apd.errors import InputError
from apd.models.calibration import Calibration, probabilities
from apd.models.classifier import PromptedCLIP
from apd.runs.folder import Run
from apd.runs.load import load_run
from apd.util.files import AnyPath, user_path
from apd.util.integers import check_whole

BATCH = 16
"""Images between two answers."""
_SUFFIXES = IMAGE_SUFFIXES | {".mpo"}
"""Also what a phone may write, in which nobody keeps training images."""


@dataclass(frozen=True)
class Answers:
    """What became of a few image files.

    Args:
        rows: ``{"image": path, "classes": [{"class": name, "probability": p}, …]}`` per file, most probable class first;
            where it was asked for, ``"abstained"`` says whether that class is too improbable to be an answer.
        bad: file to a sentence on why it cannot be read.
    """

    rows: list[dict[str, Any]]
    bad: dict[str, str]


def find_images(paths: Iterable[str | Path], unknown: Counter[str] | None = None) -> tuple[list[Path], list[str]]:
    """Image files by their own paths, by folders (all images below them) and by patterns such as ``new/*.jpg``.

    Args:
        paths: in the order of the answers; a file that exists is not a pattern, whatever its name.
        unknown: counts the visible files in folders that are not images, by suffix.

    Returns:
        The files, and a sentence on each path that leads to none.
    """
    files: list[Path] = []
    bad: list[str] = []
    skipped = Counter[str]() if unknown is None else unknown
    for given in paths:
        path = Path(given)
        if given == "":  # of an empty variable; as a path it would be the working directory
            found, why = [], "an empty name leads to no image."
        elif os.path.exists(path):
            found, why = [path], f"{path} is a folder without images."
        else:
            pattern = os.path.expanduser(given)
            found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
            is_pattern = glob.escape(str(given)) != str(given)
            why = f"nothing matches the pattern {given}." if is_pattern else f"there is no file {given}."
        closed: list[str] = []
        images = [image for entry in found for image in (_below(entry, closed, skipped) if entry.is_dir() else [entry])]
        files += dict.fromkeys(images)  # a pattern with ** finds a folder and what is below it
        bad += closed
        if not images and not closed:
            bad.append(why)
    return files, bad


def _below(folder: Path, closed: list[str], unknown: Counter[str]) -> Iterator[Path]:
    """The visible image files below a folder, sorted; linked folders are followed, each once.

    Args:
        folder: where to begin.
        closed: takes a sentence on each folder that cannot be listed.
        unknown: counts the visible files that are not images, by suffix.
    """

    def note(error: OSError) -> None:
        closed.append(f"cannot list {error.filename} ({error.strerror}).")

    seen: set[str] = set()
    for parent, below, names in os.walk(folder, onerror=note, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith((".", "__")))
        for name in sorted(names):
            if name.startswith("."):
                continue
            if (suffix := Path(name).suffix.lower()) in _SUFFIXES:
                yield Path(parent, name)
            else:
                unknown[suffix] += 1


def predict_files(
    run: AnyPath,
    images: Sequence[AnyPath],
    *,
    top: int = 3,
    model: str | None = None,
    abstain_below: float | None = None,
) -> Iterator[Answers]:
    """The most probable classes of image files, batch by batch: the first answers come before the last file is read.

    Images are turned and resized as in training. Probabilities are calibrated if the run's are (`Run.calibration`).

    Args:
        run: run folder.
        images: image files.
        top: how many classes.
        model: where the CLIP is now, if it has moved.
        abstain_below: probability that the first class must have; None: every answer stands.

    Yields:
        The answers for the next `BATCH` files.

    Raises:
        InputError: no run, a CLIP model that is not the one it was trained on, a number out of range.
    """
    if abstain_below is not None and not (isinstance(abstain_below, Real) and 0 <= abstain_below <= 1):
        raise InputError(f"abstain_below must be a probability from 0 to 1, got {abstain_below}.")
    classifier, calibration = load_run(run, model=model), Run.open(run).calibration
    for answers in classify_files(classifier, images, top=top, calibration=calibration):
        if abstain_below is not None:
            for row in answers.rows:
                row["abstained"] = row["classes"][0]["probability"] < abstain_below
        yield answers


def classify_files(
    classifier: PromptedCLIP, images: Sequence[AnyPath], *, top: int = 3, calibration: Calibration | None = None
) -> Iterator[Answers]:
    """Classify files as `predict_files` does; the next files are decoded in threads while the model computes.

    Args:
        classifier: on any device.
        images: image files.
        top: how many classes.
        calibration: the run's, which the probabilities follow.

    Yields:
        The answers for the next `BATCH` files.

    Raises:
        InputError: a single path in place of a list, no class asked for.
    """
    if isinstance(images, str | PathLike):
        raise InputError(f"images must be a list of files, got a single one: write [{str(images)!r}].")
    check_whole(top, "top")
    # A file whose name begins with ~ is not in somebody's home.
    files = [Path(image) if os.path.lexists(image) else user_path(image) for image in images]
    parts = [files[first : first + BATCH] for first in range(0, len(files), BATCH)]
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as ahead:
        following = [ahead.submit(_decode, classifier, part) for part in parts[:1]]
        for number, part in enumerate(parts):
            pixels, skipped = following.pop().result()
            following += [ahead.submit(_decode, classifier, later) for later in parts[number + 1 : number + 2]]
            yield _classify(classifier, calibration, part, pixels, skipped, top)


def _decode(classifier: PromptedCLIP, files: Sequence[Path]) -> tuple[Tensor, dict[int, str]]:
    """The files that can be read, as bytes (M,3,S,S), and a sentence on each of the others by its index."""
    names, preprocessing = [str(path) for path in files], classifier.encoder.info.preprocessing
    return decode_all(names, files, preprocessing, skip_bad=True, progress=False)


def _classify(
    classifier: PromptedCLIP,
    calibration: Calibration | None,
    files: Sequence[Path],
    pixels: Tensor,
    skipped: dict[int, str],
    top: int,
) -> Answers:
    names = [str(path) for path in files]
    bad = {names[index]: sentence for index, sentence in skipped.items()}
    if not len(pixels):
        return Answers([], bad)
    x = pixels.to(classifier.encoder.device).float() / 255
    with torch.no_grad():
        shown = probabilities(classifier(x), calibration)
    best = shown.topk(min(top, len(classifier.class_names)))
    rows = []
    read = [name for name in names if name not in bad]
    for name, values, indices in zip(read, best.values.tolist(), best.indices.tolist(), strict=True):
        classes = [
            {"class": classifier.class_names[i], "probability": value} for value, i in zip(values, indices, strict=True)
        ]
        rows.append({"image": name, "classes": classes})
    return Answers(rows, bad)
