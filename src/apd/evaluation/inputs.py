"""What commands that judge a run have in common: its classifier and the images it is judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from apd.data import Dataset, load_data, same_source
from apd.data.dataset import Split, Which
from apd.errors import InputError, nearest
from apd.evaluation.classifiers import zero_shot
from apd.evaluation.samples import Samples
from apd.models.classifier import PromptedCLIP
from apd.runs.folder import Run
from apd.runs.load import load_run
from apd.settings.explain import explain, setting_names
from apd.util.device import pick_device
from apd.util.messages import get_logger
from apd.util.trust import trust

S = TypeVar("S", bound=BaseModel)
log = get_logger("apd.evaluation")


def read_settings(section: type[S], values: Mapping[str, Any], function: str, others: Sequence[str] = ()) -> S:
    """Settings from keyword arguments.

    Args:
        section: their class.
        values: the settings.
        function: the function's name, for messages.
        others: the function's other arguments, which a misspelt setting may have meant.

    Raises:
        InputError: one line for the first that is wrong.
    """
    known = section.model_fields
    for name in values:
        if name not in known:
            raise InputError(f"{function}() has no setting {name!r}. {nearest(name, [*known, *others])}")
    try:
        return section(**values)
    except ValidationError as error:
        raise InputError(explain(error, setting_names(section))) from error


@dataclass(frozen=True)
class RunInputs:
    """A finished run and what it is judged on.

    Args:
        run: the folder.
        classifier: for the classes of ``data``.
        data: with the classes that were asked for.
    """

    run: Run
    classifier: PromptedCLIP
    data: Dataset


def of_run(
    path: str | Path,
    data: str | Dataset | None = None,
    model: str | None = None,
    device: str = "auto",
    classes: Which | None = None,
) -> RunInputs:
    """Load a run's classifier and images: its own data and classes unless others are given.

    Raises:
        InputError: not a finished run, another CLIP model than the run's, images without labels.
    """
    trust(data, model)
    run = Run.open(path)
    images, other = images_for(run, data)
    wanted = images.classes(classes or ("all" if other else run.config.data.classes))
    classifier = serving(wanted, load_run(path, device=pick_device(device), model=model))
    return RunInputs(run, classifier, wanted)


def images_for(run: Run, data: str | Dataset | None) -> tuple[Dataset, bool]:
    """Load the images that a run is judged on, with all classes, and whether they are others than its own.

    Raises:
        InputError: the run's own images have no labels.
    """
    config = run.config
    # The run's own data named again is the run's own data: drawn anew, its val could hold images it was trained on.
    source = data.source if isinstance(data, Dataset) else data
    other = source is not None and not same_source(source, config.data.source)
    if not other and config.data.class_names is not None:
        raise InputError(
            f"{run.path} was trained on images without labels ({config.data.source}), which cannot be evaluated on; give it "
            "labelled images: --data DATA (Python: data=)."
        )
    if isinstance(data, Dataset):
        return data, other
    if source is not None and other:
        return load_data(source, shots="all"), other
    return config.data.for_evaluation().load(config.train.seed), other


def serving(data: Dataset, classifier: PromptedCLIP) -> PromptedCLIP:
    """Return the classifier for the classes of ``data``; say so if it was trained for others."""
    if classifier.class_names == data.class_names:
        return classifier
    n = len(data.class_names)
    log.info(f"The run knows other classes; its prompts serve the {n} classes of {data.name}.")
    return classifier.with_classes(data.class_names, data.templates)


def zero_shot_on(model: str, source: str, classes: Which = "all", device: str = "auto") -> tuple[PromptedCLIP, Dataset]:
    """Load a CLIP model and images, and return the classifier by hand-written templates for their classes.

    Raises:
        InputError: a model or data that cannot be read.
    """
    data = load_data(source, shots="all").classes(classes)
    return zero_shot(model, data, pick_device(device)), data


def decode_sample(
    classifier: PromptedCLIP, data: Dataset, split: Split, limit: int | None, seed: int, skip_bad: bool
) -> Samples:
    """Decode the images of a split that a limit keeps, as the classifier wants them.

    Raises:
        InputError: classes that differ, a split without images, an image that cannot be read.
    """
    if classifier.class_names != data.class_names:
        raise InputError(
            f"The classifier has {len(classifier.class_names)} other classes than {data.name}; use "
            "classifier.with_classes(data.class_names, data.templates), or other data."
        )
    images = data.split(split)
    if not len(images) or (data.settings.shots == 0 and split == "val"):
        raise InputError(
            f"The {split} split of {data.name} has no images with labels; choose another split, or other data."
        )
    sample = images.sample(limit, seed)
    return Samples(sample.decode(classifier.encoder.info.preprocessing, skip_bad=skip_bad, progress=True))
