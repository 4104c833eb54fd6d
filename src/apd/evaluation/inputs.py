"""What commands that judge a run have in common: its classifier and the images it is judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ValidationError
from torch import nn

from apd.data import Dataset, load_data, same_source
from apd.data.copies import about_copies
from apd.data.load import as_text, has_columns
from apd.data.settings import Split, Which
from apd.errors import InputError, nearest
from apd.evaluation.classifiers import zero_shot
from apd.evaluation.frozen import own_answers
from apd.evaluation.learned import warn_of_learned
from apd.evaluation.samples import Samples
from apd.models.classifier import PromptedCLIP
from apd.runs.draw import Draw
from apd.runs.folder import Run
from apd.runs.load import load_run
from apd.settings.explain import explain, setting_names
from apd.util.device import pick_device
from apd.util.files import AnyPath, user_path
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
        classifier: for those ``classes`` of ``data``.
        data: with all classes.
        classes: which of them it is judged on.
    """

    run: Run
    classifier: PromptedCLIP
    data: Dataset
    classes: Which


def of_run(
    path: AnyPath,
    data: str | Path | Dataset | None = None,
    model: str | None = None,
    device: str = "auto",
    classes: Which | None = None,
    split: Split = "test",
) -> RunInputs:
    """Load a run's classifier and images: its own data and classes unless others are given; ``split`` is what is judged.

    Raises:
        InputError: not a finished run, another CLIP model than the run's, images without labels.
    """
    trust(data, model)
    run = Run.open(path)
    images, usual = images_for(run, data, split)
    which = usual if classes is None else classes
    classifier = serving(part_of(images, which), load_run(path, device=pick_device(device), model=model))
    return RunInputs(run, classifier, images, which)


def images_for(run: Run, data: str | Path | Dataset | None, split: Split = "test") -> tuple[Dataset, Which]:
    """Load the images that a run is judged on, with all classes, and say which of them it is judged on by default.

    Those that it was trained on, of its own data; all of other data, and of a data set that has some of its classes only.

    Raises:
        InputError: the run's own images have no labels.
    """
    config = run.config
    # The run's own data named again is the run's own data: drawn anew, its val could hold images it was trained on.
    source = data.source if isinstance(data, Dataset) else None if data is None else as_text(data)
    unlabelled = config.data.class_names is not None
    other = source is not None and (unlabelled or not same_source(source, config.data.source))
    if unlabelled and not other:
        raise InputError(
            f"{run.path} has no labelled images of its own (its data: {config.data.source}); give it some: --data DATA "
            "(Python: data=)."
        )
    if isinstance(data, Dataset):
        warn_of_learned(run, data, split)
        return data, "all" if other or data.settings.classes != "all" else config.data.classes
    if source is not None and other:
        images = load_other(run, source)
        warn_of_learned(run, images, split)
        return images, "all"
    images = own_data(run, split)
    # Validation images of one training may be training images of another that it was averaged with.
    if split == "train" or (split == "val" and "averaged" in run.manifest):
        warn_of_learned(run, images, split)
    return images, config.data.classes


def load_other(run: Run, source: str) -> Dataset:
    """Load data that a run was not trained on; of a table with the run's columns, these are read."""
    columns = run.config.data.columns
    known = columns is not None and has_columns(source, columns)
    return load_data(source, shots="all", columns=columns if known else None)


def is_own(run: Run, data: Dataset) -> bool:
    """Whether a data set is the one that a run was trained on, maybe at another place, and not only one of the same name."""
    own = run.config.data
    if own.class_names is not None:  # its own images have no labels
        return False
    if same_source(data.source, own.source) or data.name != run.manifest["data"]["name"]:
        return same_source(data.source, own.source)
    draw = Draw.of(run)
    moved = draw.model_copy(update={"data": own.model_copy(update={"source": data.source})})
    try:
        return moved.is_that_of(moved.load())
    except InputError:
        return False


def own_data(run: Run, split: Split = "test") -> Dataset:
    """Load the data that a run was trained on, its test images among them; warn if it has other images than then.

    Where it has copies of training images in another ``split``, which is judged, a warning says so.

    Raises:
        InputError: the data cannot be read, or are not where the run names them; a relative path counts from where one is.
    """
    own = run.config.data
    try:
        data = own.for_evaluation().load(run.config.train.seed)
    except InputError as error:
        if user_path(own.source).exists():
            raise
        raise InputError(
            f"{error} The run {run.path} was trained on it; say where it is now: --data DATA (Python: data=)."
        ) from error
    if not _as_trained_on(run, data):
        log.warning(
            f"{own.source} has other training or validation images than when {run.path} was trained: images were added, removed "
            "or renamed, or it is another folder of that name. Some of these images may be among those it was trained on; if its "
            "data is elsewhere, name it: --data DATA (Python: data=)."
        )
    if split != "train" and (copies := about_copies(data, split)):
        log.warning(copies)
    return data


def _as_trained_on(run: Run, data: Dataset) -> bool:
    """Whether the draw of a run's data gives the images it was trained on; True where nothing tells."""
    own, draw = run.config.data, Draw.of(run)
    if draw.elsewhere or (own.unlabelled is None and len(data.train) == 0):
        return True
    try:
        return draw.is_that_of(data.classes(own.classes) if own.unlabelled is None else draw.load())
    except InputError:  # images of which none are left
        return False


def part_of(data: Dataset, which: Which) -> Dataset:
    """Keep the classes that are judged; its ``settings.classes`` says which of all these are.

    Raises:
        InputError: the data set has some of its classes only, and others are asked for.
    """
    own = data.settings.classes
    if own != "all" and which not in ("all", own):
        raise InputError(
            f"{data.name} was cut to its {own} classes, so classes={which} is not in it; give the whole data set, or leave "
            "classes out."
        )
    return data if own != "all" else data.classes(which)


def serving(data: Dataset, classifier: PromptedCLIP) -> PromptedCLIP:
    """Return the classifier for the classes of ``data``; say so if it was trained for others."""
    if classifier.class_names == data.class_names:
        return classifier
    known, asked = set(classifier.class_names), set(data.class_names)
    if known == asked:  # in another order
        return classifier.with_classes(data.class_names, data.templates)
    n = len(data.class_names)
    specific = classifier.prompts is not None and classifier.prompts.n_classes
    mean = "; those that were not trained get the mean of its text contexts" if specific else ""
    log.info(f"The run knows other classes; its prompts serve the {n} classes of {data.name}{mean}.")
    return classifier.with_classes(data.class_names, data.templates)


def zero_shot_on(
    model: str,
    source: str,
    classes: Which = "all",
    device: str = "auto",
    templates: Sequence[str] | None = None,
) -> tuple[PromptedCLIP, Dataset]:
    """Load a CLIP model and images, and return the classifier by templates, or the data's, for some of their classes.

    Raises:
        InputError: a model or data that cannot be read.
    """
    data = load_data(source, shots="all", templates=templates)
    return zero_shot(model, data.classes(classes), pick_device(device)), data


def check_data(classifier: nn.Module, data: Dataset, split: Split, control: PromptedCLIP | None = None) -> None:
    """Refuse data of other classes than those of the classifier or its control, and a split without labelled images.

    Raises:
        InputError: what differs, or which split.
    """
    for name, judged in (("classifier", classifier), ("undefended", control)):
        if isinstance(judged, PromptedCLIP) and judged.class_names != data.class_names:
            raise InputError(
                f"The {name} knows {_some(judged.class_names)}, but {data.name} has {_some(data.class_names)}; "
                f"use {name}.with_classes(data.class_names, data.templates), or other data."
            )
    if len(data.split(split)) == 0 or (data.settings.shots == 0 and split == "val"):
        raise InputError(
            f"The {split} split of {data.name} has no images with labels; choose another split, or evaluate on other "
            "data: --data DATA (Python: data=)."
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{len(names)} classes ({shown}{', ...' if len(names) > 5 else ''})"


class SampleSettings(Protocol):
    """Settings that say which images of a data set are judged."""

    @property
    def split(self) -> Split:
        """The images' split."""

    @property
    def limit(self) -> int | Literal["all"]:
        """How many of them."""

    @property
    def seed(self) -> int:
        """Draws those that the limit keeps."""

    @property
    def skip_bad_images(self) -> bool:
        """Whether to leave out images that cannot be read."""


def decode_sample(classifier: PromptedCLIP, data: Dataset, settings: SampleSettings) -> Samples:
    """Decode the images of a split that a limit keeps, as the classifier wants them.

    Raises:
        InputError: classes that differ, a split without images, an image that cannot be read, a classifier whose answers are
            not those of its prompts, which alone are asked.
    """
    if own_answers(classifier):
        raise InputError(
            f"This {type(classifier).__name__} has a forward or a hook of its own, which its features and class names do not "
            "include; use apd.evaluate, which attacks the whole module."
        )
    check_data(classifier, data, settings.split)
    limit = None if settings.limit == "all" else settings.limit
    sample = data.split(settings.split).sample(limit, settings.seed)
    preprocessing = classifier.encoder.info.preprocessing
    return Samples(sample.decode(preprocessing, skip_bad=settings.skip_bad_images, progress=True))
