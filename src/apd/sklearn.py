"""`RobustCLIPClassifier`: training and prediction by the conventions of scikit-learn.

Labelled images go in, labels and probabilities come out; it can be cloned, searched over with ``GridSearchCV`` and put at
the end of a pipeline. Images are not tables of numbers, so what scikit-learn says about features does not apply.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from apd.data.arguments import unvalidated
from apd.data.dataset import IN_MEMORY, Dataset, ImageSet
from apd.data.decode import copied, decode_given
from apd.data.load import as_unlabelled, load_unlabelled
from apd.data.settings import DataSettings
from apd.data.sources.class_names import readable_names, warn, warn_of_nameless
from apd.data.sources.unlabelled import anonymous, without_known
from apd.data.splits import Pools, checked_templates, few_shot
from apd.data.unreadable import WAY_OUT, Source
from apd.errors import InputError, nearest
from apd.evaluation import evaluate
from apd.evaluation.options import EvaluationOptions
from apd.evaluation.result import Result
from apd.models import DualEncoder
from apd.models.calibration import probabilities
from apd.models.shared import shared_clip
from apd.models.templates import DEFAULT_TEMPLATES
from apd.runs.load import load_run
from apd.settings.options import TrainOptions
from apd.settings.train import TrainSettings
from apd.training.start import train
from apd.util.files import user_path
from apd.util.text import short

if TYPE_CHECKING:
    from apd.methods import Method

BATCH = 64
"""Images that are decoded and classified at a time."""
NAME = "sklearn"
"""Name of the data that `RobustCLIPClassifier.fit` makes."""

OWN = {"eps": "eps", "epochs": "epochs", "seed": "random_state"}
"""Settings of the section ``train`` that are parameters of the classifier."""

_WAY_OUT = "Replace it, or leave it out."
"""What to do about an image that cannot be read, where there is no option for it."""

Pixels = str | Path | Image.Image | NDArray[np.uint8]
Pictures = Sequence[Pixels] | NDArray[np.uint8]
"""Images: paths of files, PIL images or arrays (H,W,3) in any order, or one array (N,H,W,3); arrays are uint8."""


class RobustCLIPClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """An image classifier that learns robust prompts for a CLIP model.

    Args:
        model: what `apd.load_clip` takes.
        method: what `apd.train` takes: a name, or a mapping with the method's own settings.
        eps: training budget in [0,1] pixel units.
        epochs: passes over the training images.
        class_names: label to the words that the text encoder reads, where labels are numbers or codes; None: the labels,
            with spaces for underscores.
        templates: sentences with ``{}`` for the class name.
        unlabelled: further training images, in the form of ``X``, or a source that `apd.load_data` takes as ``unlabelled``;
            those that are also in ``X`` are left out.
        settings: further settings of the section ``train``, such as ``{"batch_size": 16, "device": "cpu"}``.
        random_state: seed of the training and of the choice of validation images; a tenth of each class, at least one
            image, is held out.
        verbose: show messages and progress.

    Attributes:
        classes_: the labels, sorted; the columns of `predict_proba`.
        classifier_: the `apd.PromptedCLIP`; ``classifier_.frozen()`` is what attack libraries take.
        run_: the `apd.Run`, in a temporary folder that is removed when Python exits; copy ``run_.path`` to keep it.

    Example:
        >>> from apd.sklearn import RobustCLIPClassifier
        >>> model = RobustCLIPClassifier(epochs=5).fit(["cat/1.jpg", "dog/1.jpg"], ["cat", "dog"])  # doctest: +SKIP
        >>> model.predict_proba(["new.jpg"])  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path | DualEncoder = "glyphs",
        method: str | Mapping[str, Any] | type[Method] = "apd",
        *,
        eps: str | float = "1/255",
        epochs: int = 30,
        class_names: Mapping[Any, str] | None = None,
        templates: Sequence[str] | None = None,
        unlabelled: Pictures | str | Path | None = None,
        settings: TrainOptions | None = None,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.method = method
        self.eps = eps
        self.epochs = epochs
        self.class_names = class_names
        self.templates = templates
        self.unlabelled = unlabelled
        self.settings = settings
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Pictures, y: ArrayLike) -> Self:
        """Learn the prompts.

        Args:
            X: images.
            y: their labels (N,): class names, or numbers with ``class_names``.

        Raises:
            InputError: images and labels that do not fit together, fewer than two classes, an unknown setting.
        """
        labels, X = self._labels(y), _held(X)
        self._check_settings()
        classes, codes = np.unique(labels, return_inverse=True)
        seed = self._seed()
        contents = [_content(image) for image in X]
        images, first = _images(X, codes, "train"), _repeats(contents, codes)
        data = self._training_data(images, first, self._names(classes), seed)
        if not isinstance(self.unlabelled, str | Path | None):
            data = replace(data, unlabelled=_without_labels(_held(self.unlabelled), set(contents)))
        clip = self.model if isinstance(self.model, DualEncoder) else shared_clip(str(self.model))
        more: dict[str, Any] = {**(self.settings or {}), "epochs": self.epochs, "seed": seed}
        try:
            run = train(clip, data, method=self.method, eps=self.eps, quiet=not self.verbose, **more)
        except InputError as error:
            raise InputError(str(error).replace(WAY_OUT, _WAY_OUT)) from error
        self.classes_, self.run_ = classes, run
        # An estimator that comes from another process has no run folder any more: it was removed with that process.
        self.threat_ = {"eps": run.config.train.eps, "norm": run.config.train.norm}
        self.classifier_ = load_run(run.path, encoder=clip)
        return self

    def predict(self, X: Pictures) -> NDArray[Any]:
        """Return the most probable label of each image (N,)."""
        chosen: NDArray[Any] = self._scores(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[chosen]
        return labels

    def predict_proba(self, X: Pictures) -> NDArray[np.float32]:
        """Return the probabilities (N, C) of the classes in the order of ``classes_``, calibrated on the validation images."""
        return self._scores(X)

    def evaluate(self, X: Pictures, y: ArrayLike, **settings: Unpack[EvaluationOptions]) -> Result:
        """Measure accuracy clean and under attack, beside zero-shot CLIP; `score` is the clean one alone.

        Args:
            X: images that were not trained on.
            y: their labels.
            settings: what `apd.evaluate` takes, such as ``attacks="pgd-20"``; eps and norm are the training's unless given.

        Raises:
            InputError: labels that were not there in training, unknown settings.
        """
        check_is_fitted(self)
        labels = self._labels(y)
        unknown = sorted(set(labels.tolist()) - set(self.classes_.tolist()), key=str)
        if unknown:
            raise InputError(f"The label {unknown[0]!r} was not there in training. {_known(self.classes_, unknown[0])}")
        images = _images(X, np.searchsorted(self.classes_, labels), "test")
        classifier, nothing = self.classifier_, ImageSet.empty()
        section = DataSettings(source=f"{IN_MEMORY}{NAME}", shots="all")
        data = Dataset(NAME, section, classifier.class_names, classifier.templates, nothing, nothing, images)
        given: dict[str, Any] = {**self.threat_, "quiet": not self.verbose, **settings}
        return evaluate(classifier, data, **given)

    def _scores(self, X: Pictures) -> NDArray[np.float32]:
        check_is_fitted(self)
        sources, names = _sources(X)
        encoder, rows = self.classifier_.encoder, [np.zeros((0, len(self.classes_)), np.float32)]
        for first in range(0, len(sources), BATCH):
            part = slice(first, first + BATCH)
            pixels = decode_given(names[part], sources[part], encoder.info.preprocessing)
            with torch.no_grad():
                logits = self.classifier_(pixels.to(encoder.device).float() / 255)
            rows.append(probabilities(logits, self.run_.calibration).cpu().numpy())
        return np.concatenate(rows)

    def _labels(self, y: ArrayLike) -> NDArray[Any]:
        if y is None:
            raise InputError("RobustCLIPClassifier requires y to be passed, but the target y is None.")
        for index, label in enumerate(np.asarray(y, dtype=object).ravel()):
            if _is_missing(label):
                raise InputError(
                    f"y[{index}] is missing ({label}): leave such images out of X and y, or give them as unlabelled."
                )
        labels: NDArray[Any] = column_or_1d(y, warn=True)
        check_classification_targets(labels)
        return labels

    def _check_settings(self) -> None:
        """Refuse unknown settings, and those that are parameters, before images are read."""
        for name in self.settings or {}:
            if name in OWN:
                raise InputError(f"settings has an entry {name!r}, which is the parameter {OWN[name]}: set it there.")
            if name not in TrainSettings.model_fields:
                raise InputError(f"settings has no entry {name!r}. {nearest(name, TrainSettings.model_fields)}")

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _names(self, classes: NDArray[Any]) -> tuple[str, ...]:
        if self.class_names is None:
            named = readable_names([str(label) for label in classes.tolist()])
            warn_of_nameless(named, "y", "Give their words: class_names={0: 'cat', 1: 'dog'}.")
            return named
        if isinstance(self.class_names, Sequence | np.ndarray):
            raise InputError(
                f"class_names must map each label to its words, such as {{0: 'cat'}}, got {short(self.class_names)}."
            )
        missing = [label for label in classes.tolist() if label not in self.class_names]
        if missing:
            raise InputError(f"class_names has no words for the label {missing[0]!r}.")
        names = tuple(self.class_names[label] for label in classes.tolist())
        if odd := [name for name in names if not isinstance(name, str)]:
            raise InputError(f"class_names must map labels to words, got {short(odd[0])}.")
        return names

    def _training_data(self, images: ImageSet, first: Sequence[int], names: tuple[str, ...], seed: int) -> Dataset:
        source, templates = f"{IN_MEMORY}{NAME}", checked_templates(self.templates or DEFAULT_TEMPLATES)
        # An image that is there twice is in one split only, if others are there.
        once = images.select(sorted(set(first)))
        if int(once.labels.bincount().max()) < 2:
            once, first = images, range(len(images))
        pools = Pools(NAME, source, names, once, None, ImageSet.empty(), templates, train_only=True)
        given = as_unlabelled(self.unlabelled) if isinstance(self.unlabelled, str | Path) else None
        data = few_shot(pools, unvalidated(source=source, shots="all", seed=seed, unlabelled=given))
        drawn = set(data.train.ids)
        data = replace(data, train=images.select([i for i, own in enumerate(first) if images.ids[own] in drawn]))
        if not len(data.val):
            raise InputError("y has each label once: some class needs two images, one of them for validation.")
        if given is None:
            return data
        return replace(data, unlabelled=without_known(load_unlabelled(given), data, (), same_source=False))

    def __sklearn_tags__(self) -> Any:
        """Say that images go in, not tables, and that scikit-learn's checks of tables do not apply."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        return tags


def _is_missing(label: object) -> bool:
    try:
        return label is None or bool(label != label)  # NaN, of which numpy makes the word nan among words
    except TypeError:  # pandas.NA, which is neither equal nor unequal to itself
        return True


def _known(classes: NDArray[Any], label: object) -> str:
    return nearest(str(label), [str(known) for known in classes.tolist()])


def _images(X: Pictures, codes: NDArray[Any], split: str) -> ImageSet:
    """Put images and label numbers together, with ids by place: an image may be there twice, as in a bootstrap."""
    sources, _ = _sources(X)
    if len(sources) != len(codes):
        raise InputError(f"X has {len(sources)} images, but y has {len(codes)} labels.")
    if not sources:
        raise InputError("X has no images.")
    ids = tuple(f"{NAME}/{split}/{index:06d}" for index in range(len(sources)))
    return ImageSet(ids, torch.from_numpy(codes.astype(np.int64)), sources)


def _held(X: Pictures) -> Pictures:
    """Images that can be gone through more than once; a generator gives its own once."""
    return list(X) if isinstance(X, Iterator) else X


def _without_labels(X: Pictures, known: set[object]) -> ImageSet:
    """Put the images together that are not known, and warn of how many are: validation images are among those."""
    _sources(X, "unlabelled")
    if not len(X):
        raise InputError("unlabelled has no images; give some, or None.")
    new = [image for image in X if _content(image) not in known]
    if not new:
        raise InputError(f"unlabelled: all its {len(X)} images are also in X; give other images, or leave it out.")
    if left_out := len(X) - len(new):
        warn(f"Of the {len(X)} unlabelled images, {left_out} are left out, because they are also in X.")
    return anonymous(_images(new, np.zeros(len(new), np.int64), "unlabelled"))


def _repeats(contents: Sequence[object], codes: NDArray[Any]) -> list[int]:
    """Return for each image where it is first, with the same label: its own place unless it is there twice."""
    found: dict[object, int] = {}
    pairs = zip(contents, codes.tolist(), strict=True)
    return [found.setdefault(pair, place) for place, pair in enumerate(pairs)]


def _content(image: Pixels) -> object:
    """What is equal for images that are the same: the file behind all links, or size and pixels."""
    if isinstance(image, str | Path):
        return os.path.realpath(user_path(image))
    try:
        pixels = np.asarray(image)
    except Exception:  # a picture that cannot be read is told of when it is decoded
        return id(image)
    about = (image.mode, *(image.getpalette() or ())) if isinstance(image, Image.Image) else ()
    return pixels.shape, hashlib.sha256(pixels.tobytes()).digest(), about


def _sources(X: Pictures, name: str = "X") -> tuple[tuple[Source, ...], list[str]]:
    """Where each image comes from, and what messages call it; ``name`` is the parameter's."""
    if isinstance(X, str | Path | Image.Image):
        raise InputError(f"{name} must be a list of images, got a single {type(X).__name__}: write [{name}].")
    if hasattr(X, "columns"):  # a data frame, which iterates over the names of its columns
        raise InputError(
            f"{name} must be a list of images, got a table {getattr(X, 'shape', ())}: give the column of paths, table[NAME]."
        )
    if not isinstance(X, Iterable):
        raise InputError(f"{name} must be a list of images, got {short(X)}.")
    given, locks = list(enumerate(_held(X))), defaultdict[int, Lock](Lock)
    found = tuple(_source(image, f"{name}[{index}]", locks[id(image)]) for index, image in given)
    names = [str(image) if isinstance(image, str | Path) else f"{name}[{index}]" for index, image in given]
    return found, names


def _source(image: object, name: str, lock: Lock) -> Source:
    """Return how to open an image; the lock is of this very image, and ``name`` is what messages call it."""
    if isinstance(image, str | Path):
        return user_path(image)
    if isinstance(image, Image.Image):
        return partial(copied, image, lock)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return partial(Image.fromarray, image)
    about = f"{image.dtype} array {image.shape}" if isinstance(image, np.ndarray) else short(image)
    raise InputError(
        f"{name} must be the path of an image, a PIL image or a uint8 array (height, width, 3), got {about}."
    )
