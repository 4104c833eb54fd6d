"""Evaluations of classifiers that are not runs, in folders of their own: resumed, compared and listed like those of runs.

::

    FOLDER/NAME-HASH/classifier.json   what was evaluated; HASH is of its weights, code and classes
    FOLDER/NAME-HASH/results/          as in a run folder: summaries, and outcomes image by image
    FOLDER/NAME-HASH/images/           adversarial images, if they were asked for
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from apd.data import Dataset, load_data
from apd.errors import InputError
from apd.evaluation.classifiers import load_classifier, zero_shot
from apd.evaluation.frozen import Subject
from apd.evaluation.inputs import part_of
from apd.evaluation.measure import evaluate, parse_settings, preprocessing_of, side_of
from apd.evaluation.options import EvaluationOptions
from apd.evaluation.result import Result
from apd.evaluation.stored import write_result
from apd.models.classifier import PromptedCLIP
from apd.runs.load import describe_encoder
from apd.util.device import pick_device
from apd.util.files import check_writable, read_json, remove_leftovers, user_path, write_atomic
from apd.util.locks import FolderLock
from apd.util.messages import get_logger, speaking
from apd.util.text import printable, to_json
from apd.util.versions import versions

log = get_logger("apd.evaluation")

FORMAT = 1
"""Version of ``classifier.json``."""
FOLDER = "evaluations"
"""Where evaluations of classifiers are kept unless another folder is named."""
_DIGITS = 12
"""Digits of a fingerprint in a folder's name."""


def evaluate_classifier(
    classifier: str | nn.Module,
    data: str | Path | Dataset,
    *,
    folder: str | Path | None = FOLDER,
    model: str | None = None,
    image_size: int | None = None,
    device: str = "auto",
    save_images: bool = False,
    **settings: Unpack[EvaluationOptions],
) -> Result:
    """Evaluate a classifier of any kind as `apd evaluate --classifier` does, and keep the result in a folder of its own.

    A second call on a classifier with the same weights, code and classes computes only what is missing.

    Args:
        classifier: any module from pixels (B,3,S,S) in [0,1] to logits (B,C) for the classes of ``data`` in their order, or
            what makes it: ``package.module:factory``, or ``FORM:FILE`` for a checkpoint of CoOp, MaPLe or FAP.
        data: as `apd.load_data` takes it, or a data set.
        folder: FOLDER/NAME-HASH keeps the result; None: nothing is kept.
        model: a CLIP model: the one that a checkpoint's prompts were learned on; else attacked zero-shot as the control.
        image_size: side of the images that the module takes; None: its attribute ``image_size``.
        device: auto, cpu, cuda, cuda:1 or mps; a module that is given stays where it is.
        save_images: keep the adversarial images, too.
        settings: any of `EvaluationSettings`, such as ``attacks="autoattack"``, ``limit=100`` or ``eps="4/255"``.

    Raises:
        InputError: code that cannot be imported or makes something else, outputs of another shape, unknown settings, images
            that cannot be read.

    Example:
        >>> import apd
        >>> apd.evaluate_classifier("my_models:robust", "photos", image_size=224)  # doctest: +SKIP
    """
    others = ("folder", "model", "image_size", "device", "save_images")
    chosen = parse_settings(settings, "evaluate_classifier", others)
    _check_folder(folder, save_images)
    images = data if isinstance(data, Dataset) else load_data(data, shots="all")
    wanted = part_of(images, chosen.classes)
    with speaking(chosen.quiet):
        found = classifier
        if isinstance(found, str):
            found = load_classifier(found, wanted, model=model, device=pick_device(device))
        name = classifier if isinstance(classifier, str) else type(classifier).__name__
        control = None
        if model is not None and chosen.control and not isinstance(found, PromptedCLIP):
            control = zero_shot(model, wanted, pick_device(device))
        size = _image_size(found, image_size, control)
        preprocessing_of(found, images, size)  # before the folder is made
        return _evaluate_into(folder, found, name, images, control, size, save_images, settings)


def evaluate_zero_shot(
    model: str,
    data: str | Path | Dataset,
    *,
    templates: Sequence[str] | None = None,
    folder: str | Path | None = None,
    device: str = "auto",
    save_images: bool = False,
    **settings: Unpack[EvaluationOptions],
) -> Result:
    """Evaluate a CLIP model zero-shot as `apd evaluate --model` does.

    Args:
        model: as `apd.load_clip` takes it, fine-tuned towers (``BASE+FILE``) included.
        data: as `apd.load_data` takes it, or a data set.
        templates: sentences with ``{}`` for the class name; None: those of the data.
        folder: FOLDER/NAME-HASH keeps the result; None: nothing is kept.
        device: auto, cpu, cuda, cuda:1 or mps.
        save_images: keep the adversarial images, too.
        settings: any of `EvaluationSettings`.

    Raises:
        InputError: an unknown model or setting, images that cannot be read.
    """
    chosen = parse_settings(settings, "evaluate_zero_shot", ("templates", "folder", "device", "save_images"))
    _check_folder(folder, save_images)
    if templates is not None and isinstance(data, Dataset):
        raise InputError("evaluate_zero_shot: a data set has its templates already; give them to apd.load_data.")
    images = data if isinstance(data, Dataset) else load_data(data, shots="all", templates=templates)
    wanted = part_of(images, chosen.classes)
    with speaking(chosen.quiet):
        log.info(f"{wanted.summary()}; CLIP model {printable(model)}")
        found = zero_shot(model, wanted, pick_device(device))
        return _evaluate_into(folder, found, model, images, None, None, save_images, settings)


def _check_folder(folder: str | Path | None, save_images: bool) -> None:
    """Refuse, before any work, a folder that cannot be written, and images that would be kept nowhere."""
    if folder is not None:
        check_writable(user_path(folder))
    elif save_images:
        raise InputError(
            "--save-images keeps the images in a folder: give a run folder, or --folder (Python: folder=)."
        )


def _evaluate_into(
    folder: str | Path | None,
    classifier: nn.Module,
    name: str,
    data: Dataset,
    control: PromptedCLIP | None,
    image_size: int | None,
    save_images: bool,
    settings: EvaluationOptions,
) -> Result:
    """Evaluate, and keep all of it in the folder of this classifier, if anything is to be kept."""
    if folder is None:
        return evaluate(classifier, data, undefended=control, image_size=image_size, **settings)
    fingerprint = Subject.of(classifier).fingerprint
    place = user_path(folder) / f"{_short(name)}-{fingerprint[:_DIGITS]}"
    kept = place / "images" if save_images else None
    store = place / "results"
    with FolderLock(place).held():
        remove_leftovers(place)
        result = evaluate(
            classifier, data, store=store, undefended=control, image_size=image_size, save_images=kept, **settings
        )
        write_atomic(place / "classifier.json", to_json(_record(classifier, name, fingerprint, result)) + "\n")
        write_result(store, result)
    log.info(f"Kept in {place}")
    return result


def _short(name: str) -> str:
    """The name as part of a folder's name, safe on any file system."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[-60:] or "classifier"


def _record(classifier: nn.Module, name: str, fingerprint: str, result: Result) -> dict[str, Any]:
    prompted = classifier if isinstance(classifier, PromptedCLIP) else None
    return {
        "format": FORMAT,
        "classifier": name,
        "fingerprint": fingerprint,
        "class_names": list(result.class_names),
        "templates": None if prompted is None else list(prompted.templates),
        "model": None if prompted is None else describe_encoder(prompted.encoder.info),
        "kind": "module" if prompted is None else "prompts",
        "image_size": result.image_size,
        "versions": versions(),
    }


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read what was evaluated from a folder's ``classifier.json``; None where there is none that can be read."""
    try:
        record = read_json(folder / "classifier.json", "evaluate again")
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("classifier"), str) else None


def _image_size(classifier: nn.Module, given: int | None, control: PromptedCLIP | None) -> int | None:
    """The side of the images of a module; that of a `PromptedCLIP` is its encoder's.

    Raises:
        InputError: a control that takes images of another size.
    """
    if isinstance(classifier, PromptedCLIP):
        return None
    size = side_of(classifier, given)
    if control is not None:
        other = control.encoder.info.image_size
        size = other if size is None else size
        if size != other:
            raise InputError(
                f"{control.encoder.info.source} takes images of {other} px and the classifier of {size} px: they cannot be "
                "attacked on the same images. Leave out --model, or give a CLIP model of that size."
            )
    return size
