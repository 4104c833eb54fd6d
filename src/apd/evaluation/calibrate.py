"""`calibrate_run`: measure how the probabilities of a finished run are calibrated, and keep it in the run."""

from __future__ import annotations

from pathlib import Path

import torch

from apd.data import Dataset, same_source
from apd.data.load import as_text
from apd.data.settings import Split
from apd.errors import InputError
from apd.evaluation.inputs import load_other
from apd.evaluation.learned import learned_of_own, learned_unlabelled, warn_of_copies
from apd.models.calibration import Calibration
from apd.runs.draw import draws_of
from apd.runs.folder import Run
from apd.runs.load import load_run
from apd.util.device import pick_device
from apd.util.files import AnyPath
from apd.util.messages import speaking
from apd.util.progress import watched
from apd.util.text import first_of
from apd.util.trust import trust

BATCH = 64
"""Images at a time."""


def calibrate_run(
    path: AnyPath,
    *,
    data: str | Path | Dataset | None = None,
    split: Split = "val",
    model: str | None = None,
    device: str = "auto",
    skip_bad_images: bool = False,
    quiet: bool = False,
) -> Calibration:
    """Fit the temperature of a finished run's probabilities, and keep it in its ``run.json`` and model card.

    Trainings do so at their end; this is for runs made before, for runs trained without labels and averages, and for images
    that are more like those that will come. Prompts and results stay as they are.

    Args:
        path: the run folder.
        data: labelled images of the run's classes; None for the run's own.
        split: which of them; never those it was trained on.
        model: where the run's CLIP model is now, if it has moved since.
        device: auto, cpu, cuda, cuda:1 or mps.
        skip_bad_images: leave unreadable images out.
        quiet: show nothing.

    Raises:
        InputError: not a finished run, no labelled images in the split, other classes than the run's, an image that cannot
            be read; another process that is writing to the run.

    Example:
        >>> import apd
        >>> apd.calibrate_run("runs/digits").temperature  # doctest: +SKIP
    """
    trust(data, model)
    run = Run.open(path)
    skip = skip_bad_images or run.config.data.skip_bad_images
    with speaking(quiet), run.held():
        images = _images(run, data, split)
        classifier = load_run(path, device=pick_device(device), model=model)
        if sorted(images.class_names) != sorted(classifier.class_names):
            raise InputError(
                f"{images.name} has other classes than the run {path}; give images of the run's: "
                f"{first_of(classifier.class_names, 'classes')}."
            )
        if images.class_names != classifier.class_names:  # in another order, on which no probability depends
            classifier = classifier.with_classes(images.class_names)
        decoded = images.split(split).decode(classifier.encoder.info.preprocessing, skip_bad=skip, progress=True)
        frozen, starts = classifier.frozen(), range(0, len(decoded), BATCH)
        with torch.no_grad():
            logits = [
                frozen(decoded.pixels(slice(at, at + BATCH)).to(classifier.encoder.device)).cpu()
                for at in watched(starts, len(starts), "calibrating", "batches")
            ]
        found = Calibration.fit(torch.cat(logits), decoded.labels, split)
        run.save_calibration(found)
    return found


def _images(run: Run, data: str | Path | Dataset | None, split: Split) -> Dataset:
    """Return the data set whose split is calibrated on.

    Raises:
        InputError: the split of training images, images that were trained on without labels, images without labels, an
            empty split.
    """
    own = run.config.data
    source = data.source if isinstance(data, Dataset) else None if data is None else as_text(data)
    other = source is not None and not same_source(source, own.source)
    if split == "train" and not other:
        raise InputError(f"--split train holds the images that {run.path} was trained on; use val or test.")
    if isinstance(data, Dataset):
        images = data
    elif source is not None and other:
        images = load_other(run, source)
    elif own.class_names is not None or (own.shots == 0 and split == "val"):
        raise InputError(
            f"{run.path} has no labelled images of its own (its data: {own.source}); give it some: --data DATA (Python: data=)."
        )
    else:
        images = own.labelled().load(run.config.train.seed)
    if not len(images.split(split)):
        raise InputError(f"The {split} split of {images.name} has no images; choose another with --split.")
    # Validation images of one training may be training images of another that it was averaged with.
    averaged = "averaged" in run.manifest and split == "val"
    if (averaged or isinstance(data, Dataset)) and (seen := learned_of_own(run, images, images.split(split))):
        its_own = "" if averaged else f", or data={images.source!r} for its own validation images"
        raise InputError(
            f"{run.path} was trained on {len(seen)} of the {len(images.split(split))} {split} images of {images.name} as they "
            f"are drawn here: give images that it has not seen{its_own}."
        )
    if count := other and learned_unlabelled(draws_of(run), source, images.split(split)):
        raise InputError(
            f"{run.path} may have been trained on {count} of the {len(images.split(split))} {split} images of {images.name}, "
            f"without their labels (data.unlabelled={own.unlabelled}): give images that it has not seen."
        )
    if other:
        warn_of_copies(run, images, split)
    return images
