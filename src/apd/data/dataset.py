"""Labelled images with stable ids, decoded only when asked for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, get_args

import torch
from torch import Tensor

from apd.data.decode import decode_all
from apd.data.settings import DataSettings, Shots, Split, Which
from apd.data.unreadable import Source
from apd.errors import InputError, nearest
from apd.models.preprocessing import Preprocessing
from apd.models.templates import DEFAULT_TEMPLATES
from apd.util.integers import check_whole
from apd.util.notebook import html_facts
from apd.util.seeds import shuffled
from apd.util.text import first_of, printable, quoted, short

UNKNOWN = -1
"""The label of an image that has none."""
IN_MEMORY = "memory:"
"""Stands before the name of a data set that was made in Python, where others have their source."""


class Images(Protocol):
    """What training reads of images, wherever their pixels are kept."""

    @property
    def ids(self) -> tuple[str, ...]:
        """One per image."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64, on the device that pixels are given on."""

    def __len__(self) -> int:
        """Number of images."""

    def pixels(self, index: Tensor) -> Tensor:
        """The images at ``index`` (B,) as float32 (B,3,S,S) in [0,1]."""

    def expect(self, index: Sequence[int]) -> None:
        """Take note that the images at ``index`` will be asked for soon."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """Images decoded once and kept as bytes.

    Args:
        images: uint8 (N,3,S,S), S being the encoder's size.
        labels: int64 (N,).
        ids: one per sample.
        skipped: ids of the images that could not be read, which are not among the N.
    """

    images: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Decoded({first_of(self.ids, 'images')} of {tuple(self.images.shape[1:])})"

    def to(self, device: torch.device) -> Decoded:
        """Move images and labels to a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def pixels(self, index: Tensor | slice | int = slice(None)) -> Tensor:
        """The images at ``index`` as float32 in [0,1], on the device of ``images``."""
        return self.images[index].float() / 255

    def expect(self, index: Sequence[int]) -> None:
        """Do nothing: the images are here."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images, not decoded yet: choosing among them costs nothing.

    Args:
        ids: a stable id per sample, such as its relative path or ``digits/0017``.
        labels: int64 (N,), from 0.
        sources: where each image comes from: a file, or a function without arguments that opens it.
    """

    ids: tuple[str, ...]
    labels: Tensor
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.labels) == len(self.sources):
            raise ValueError(f"{len(self.ids)} ids, {len(self.labels)} labels and {len(self.sources)} sources differ.")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def __repr__(self) -> str:
        return f"ImageSet({first_of(self.ids, 'images')})"

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        labels = {*self.labels.tolist()} - {UNKNOWN}
        return html_facts("ImageSet", {"images": first_of(self.ids, "images"), "labels": len(labels)})

    def select(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """The samples at ``indices``, in that order."""
        chosen = indices.tolist() if isinstance(indices, Tensor) else list(indices)
        labels = self.labels[torch.tensor(chosen, dtype=torch.int64)]
        return ImageSet(tuple(self.ids[i] for i in chosen), labels, tuple(self.sources[i] for i in chosen))

    def sample(self, limit: int | None, seed: int = 0) -> ImageSet:
        """At most ``limit`` images, drawn by ``seed``, in their first order; a smaller limit draws a subset of them.

        Raises:
            InputError: if ``limit`` is not a whole number from 1.
        """
        if limit is None or check_whole(limit, "limit", ", the number of images to keep") >= len(self):
            return self
        return self.select(sorted(shuffled(self.ids, seed, "sample")[:limit]))

    @classmethod
    def empty(cls) -> ImageSet:
        """No images."""
        return cls((), torch.zeros(0, dtype=torch.int64), ())

    def by_class(self, classes: int) -> list[list[int]]:
        """The indices of each class's images, in order."""
        groups: list[list[int]] = [[] for _ in range(classes)]
        for index, label in enumerate(self.labels.tolist()):
            groups[label].append(index)
        return groups

    def decode(self, preprocessing: Preprocessing, *, skip_bad: bool = False, progress: bool = False) -> Decoded:
        """Decode every image, as the encoder wants it, in threads; the order stays.

        Images are turned as their EXIF says, transparent ones laid on white, 16-bit ones scaled to 8 bits.

        Args:
            preprocessing: of the encoder (``encoder.info.preprocessing``).
            skip_bad: leave out the images that cannot be read, and list them in ``Decoded.skipped``.
            progress: show on standard error how far it is when it takes long.

        Raises:
            InputError: for an image that cannot be read (or, with ``skip_bad``, if none can), naming it.
        """
        images, skipped = decode_all(self.ids, self.sources, preprocessing, skip_bad, progress)
        if skipped and len(skipped) == len(self):
            raise InputError(f"none of the {len(self)} images can be read; the first error: {skipped[0]}")
        kept = [i for i in range(len(self)) if i not in skipped]
        labels = self.labels[torch.tensor(kept, dtype=torch.int64)]
        return Decoded(images, labels, tuple(self.ids[i] for i in kept), tuple(self.ids[i] for i in skipped))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Named classes and their images, split for training, for choosing, and for the last word.

    Args:
        name: short name for tables.
        settings: the section it was loaded by, with the seed that drew the shots.
        class_names: readable, in label order.
        templates: sentences with ``{}`` for the class name.
        train: the images to train on; no image is in two splits. Empty for a test set for domain shift.
        val: the images to choose by. Empty for a test set for domain shift; without shots, images whose labels are not used:
            training takes a teacher's answers in their place.
        test: the images to measure on.
        unlabelled: further training images. The labels that some of them have choose classes only; training sees none.
        mirror: whether training may flip images left to right.
        description: one line on where each split comes from.
    """

    name: str
    settings: DataSettings
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    test: ImageSet
    mirror: bool = True
    description: str = ""
    unlabelled: ImageSet = field(default_factory=ImageSet.empty)

    def __repr__(self) -> str:
        return f"Dataset({self.summary()})"

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        splits = {
            "training images": self.train,
            "unlabelled": self.unlabelled,
            "validation": self.val,
            "test": self.test,
        }
        facts = {
            "classes": first_of(self.class_names, "classes", shown=10),
            **{name: len(images) for name, images in splits.items() if len(images) or name != "unlabelled"},
            "templates": first_of(self.templates, "templates"),
            "source": self.source,
            "about": self.description,
        }
        return html_facts(f"Dataset {self.name}", facts)

    @property
    def source(self) -> str:
        """The folder, file or name it was read from."""
        return self.settings.source

    @classmethod
    def from_tensors(
        cls,
        name: str,
        class_names: Sequence[str],
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        val: tuple[Tensor, Tensor] | None = None,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
    ) -> Dataset:
        """Make a data set from images and labels in memory.

        Args:
            name: short name for tables.
            class_names: readable, in label order.
            train: images (N,3,H,W), uint8 or floats in [0,1], and int labels (N,) from 0. Floats are rounded to 8 bits.
            test: likewise for the test images.
            val: likewise for validation images; None: a tenth of each class's training images, at least one.
            templates: sentences with ``{}`` for the class name.

        Raises:
            InputError: images, labels or names that do not fit together.

        Example:
            >>> import apd, torch
            >>> x, y = torch.rand(8, 3, 32, 32), torch.arange(8) % 2
            >>> data = apd.Dataset.from_tensors("noise", ["left", "right"], train=(x, y), test=(x, y))
            >>> len(data.train), len(data.val), len(data.test)
            (6, 2, 8)
        """
        from apd.data.memory import of_splits, pair_of, tensor_images

        splits = {"train": train, "val": val, "test": test}
        made = {
            key: None if pair is None else tensor_images(name, key, *pair_of(name, key, pair))
            for key, pair in splits.items()
        }
        return of_splits(name, class_names, made, templates)

    @classmethod
    def from_torch(
        cls,
        name: str,
        class_names: Sequence[str],
        train: Any,
        test: Any,
        val: Any = None,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
    ) -> Dataset:
        """Make a data set from torch data sets of (image, label), the image a PIL image or a tensor (3,H,W).

        Args:
            name: short name for tables.
            class_names: readable, in label order.
            train: an object with ``len`` and ``[i] -> (image, label)``; they are read when needed, and known by place.
            test: likewise for the test images.
            val: likewise for validation images; None: a tenth of each class's training images, at least one.
            templates: sentences with ``{}`` for the class name.
        """
        from apd.data.memory import of_splits, torch_images

        splits = {"train": train, "val": val, "test": test}
        made = {key: None if part is None else torch_images(name, key, part) for key, part in splits.items()}
        return of_splits(name, class_names, made, templates)

    def summary(self) -> str:
        """One line with the first class names and the images per split, so that misread data shows at once."""
        more = f"{len(self.unlabelled)} unlabelled, " if len(self.unlabelled) else ""
        sizes = f"{len(self.train)} train, {more}{len(self.val)} validation, {len(self.test)} test images"
        return f"{printable(self.name)}: {first_of(self.class_names, 'classes')}; {sizes}"

    def shortage(self) -> str:
        """A sentence on classes with fewer training images than were asked for; empty where there are none."""
        shots = self.settings.shots
        few = fewer_than(shots, self.train, self.class_names) if len(self.train) else ""
        if few:
            return f"Asked for {shots} training images per class{few}; those are trained on all they have."
        wanted = self.settings.validation or 0
        sizes = [len(group) for group in self.train.by_class(len(self.class_names))]
        alone = [name for name, size in zip(self.class_names, sizes, strict=True) if size == 1 < wanted]
        if shots != "all" or not alone:
            return ""
        return f"Asked for {wanted} validation images per class, which leave one training image to {first_of(alone, 'classes')}."

    def check_trainable(self) -> None:
        """Check that there are images to train on and to validate with.

        Raises:
            InputError: a test set for domain shift; no class has an image left for validation.
        """
        if not len(self.train) and not len(self.unlabelled):
            raise InputError(
                f"{self.name} is a test set without training images: train on other data, then evaluate on it "
                f"(apd evaluate RUN --data {quoted(self.source)})."
            )
        if not len(self.val):
            raise InputError(
                f"no class of {self.source} has an image left for validation: add images, or a val/ folder with some."
            )

    def split(self, name: Split) -> ImageSet:
        """One of the splits by its name.

        Raises:
            InputError: for an unknown name.
        """
        if name not in get_args(Split):
            raise InputError(f"unknown split {name!r}. {nearest(name, get_args(Split))}")
        split: ImageSet = getattr(self, name)
        return split

    def classes(self, which: Which = "all") -> Dataset:
        """Keep some of the classes: the base-to-new protocol of CoCoOp (arXiv 2203.05557).

        Args:
            which: ``all``, ``base`` (the first ceil(C/2) labels) or ``new`` (the rest, labelled from 0).

        Raises:
            InputError: for an unknown ``which``, if fewer than two classes would be left, and for the other half of a half.
        """
        if which not in get_args(Which):
            raise InputError(f"unknown classes {which!r}. {nearest(str(which), get_args(Which))}")
        if which in ("all", self.settings.classes):
            return self
        if self.settings.classes != "all":
            raise InputError(
                f"{self.name} was cut to its {self.settings.classes} classes; take {which} of the whole data set."
            )
        count = len(self.class_names)
        middle = math.ceil(count / 2)
        first, last = (0, middle) if which == "base" else (middle, count)
        if last - first < 2:
            raise InputError(f"classes={which} leaves {last - first} of {count} classes of {self.name}, needs two.")
        return replace(
            self,
            class_names=self.class_names[first:last],
            train=_of_labels(self.train, first, last),
            val=_of_labels(self.val, first, last, also=UNKNOWN),
            test=_of_labels(self.test, first, last),
            unlabelled=_of_labels(self.unlabelled, first, last, also=UNKNOWN),
            settings=self.settings.model_copy(update={"classes": which}),
            description=f"{which} classes ({last - first} of {count}) of: {self.description}",
        )


def check_dataset(data: object) -> None:
    """Refuse what is not a data set, such as the name of one.

    Raises:
        InputError: saying what makes one.
    """
    if not isinstance(data, Dataset):
        raise InputError(f"data must be a data set, as apd.load_data makes it, got {short(data)}.")


def in_turn(order: Sequence[int], labels: Sequence[int]) -> list[int]:
    """Sort indices of images: the first of each class, then the second of each, and so on."""
    seen: Counter[int] = Counter()
    turns = []
    for index in order:
        turns.append((seen[labels[index]], labels[index], index))
        seen[labels[index]] += 1
    return [index for *_, index in sorted(turns)]


def fewer_than(shots: Shots | None, train: ImageSet, class_names: Sequence[str]) -> str:
    """A clause on the classes that have fewer training images than ``shots``; empty where there are none."""
    sizes = [len(group) for group in train.by_class(len(class_names))]
    small = [label for label, size in enumerate(sizes) if isinstance(shots, int) and size < shots]
    if not small:
        return ""
    least = min(small, key=sizes.__getitem__)
    return f", fewer in {len(small)} of {len(sizes)} classes (the fewest: {sizes[least]} of {class_names[least]!r})"


def _of_labels(images: ImageSet, first: int, last: int, also: int | None = None) -> ImageSet:
    """The images of labels from ``first`` to before ``last``, which then start from 0; those of ``also`` keep theirs."""
    keep = (images.labels >= first) & (images.labels < last)
    chosen = images.select(torch.nonzero(keep if also is None else keep | (images.labels == also)).flatten())
    return replace(chosen, labels=torch.where(chosen.labels >= first, chosen.labels - first, chosen.labels))
