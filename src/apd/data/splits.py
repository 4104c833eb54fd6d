"""From all the images of a data set to k shots per class, with a validation split that is always there."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from apd.data.dataset import Dataset, ImageSet, fewer_than
from apd.data.settings import REST, DataSettings, Shots
from apd.data.sources.class_names import composed
from apd.errors import InputError
from apd.models.templates import DEFAULT_TEMPLATES
from apd.util.listed import listed
from apd.util.progress import counted
from apd.util.seeds import shuffled
from apd.util.text import short

VALIDATION_SHOTS = 4
"""Validation images per class where no number is asked for: min(k, 4), as in CoOp (arXiv 2109.01134)."""


@dataclass(frozen=True, eq=False)
class Pools:
    """All images of a data set, before shots are drawn.

    Args:
        name, source, class_names, templates, mirror: as in ``Dataset``.
        train, test: every image of these splits.
        val: the data's own validation split, or None.
        note: a sentence on how the splits came about.
        coop_draw: draw the shots as CoOp's code does, for results comparable image by image with published ones.
        test_only: there are no training images and never were: a test set of another domain.
        divided: the data has no splits of its own and went through `split_pool`.
        train_only: there is no test split: what is trained on is all there is.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    train: ImageSet
    val: ImageSet | None
    test: ImageSet
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    mirror: bool = True
    note: str = ""
    coop_draw: bool = False
    test_only: bool = False
    divided: bool = False
    train_only: bool = False

    @classmethod
    def of_test(cls, name: str, source: str, class_names: tuple[str, ...], test: ImageSet) -> Pools:
        """Make a test set of another domain, which has no training images."""
        return cls(name, source, class_names, ImageSet.empty(), None, test, test_only=True)

    def __post_init__(self) -> None:
        check_names(self.class_names, self.source)
        needed = [] if self.test_only else [("training", self.train)]
        needed += [] if self.train_only else [("test", self.test)]
        for split, images in needed:
            for class_name, group in zip(self.class_names, images.by_class(len(self.class_names)), strict=True):
                if not group:
                    raise InputError(f"the class {class_name!r} of {self.source} has no {split} images.")
        ids = [*self.train.ids, *(self.val.ids if self.val else ()), *self.test.ids]
        id_, times = Counter(ids).most_common(1)[0]
        if times > 1:
            raise InputError(f"{self.source} lists {id_} {times} times: an image may be in one split only, once.")


def check_names(names: tuple[str, ...], source: str) -> None:
    """Check that there are at least two class names, all different, which a text encoder can read.

    Raises:
        InputError: naming ``source``, where they come from.
    """
    if len(names) < 2:
        found = f"one class only ({names[0]})" if names else "no classes"
        raise InputError(f"{source} has {found}: two are needed.")
    for label, name in enumerate(names):
        if any("\ud800" <= char <= "\udfff" for char in name):  # how Python keeps bytes that are not text
            raise InputError(f"the class name {name!r} of {source} is not UTF-8: rename its folder.")
        if not any(char.isprintable() and not char.isspace() for char in name):
            raise InputError(f"{source} has an empty name for the class of label {label}: every class needs a name.")
    name, times = Counter(map(_compared, names)).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"{source} has {times} classes named {name!r} (capitals, hyphens, underscores and further spaces do not "
            "count): give them one label if they are one class, else different names (those of folders in classes.txt)."
        )


def _compared(name: str) -> str:
    """The name without what does not tell two names apart; the hyphen of ``-1`` does."""
    return " ".join(re.sub(r"(?<=\w)-+(?=\w)", " ", composed(name).replace("_", " ")).split()).casefold()


def split_pool(images: ImageSet, class_names: tuple[str, ...], source: str) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Split 60/20/20 into train, val and test, class by class, by the hash of the ids: the same for every seed.

    A class of two images has one for training and one for the test, and none for validation.

    Raises:
        InputError: for a class of one image.
    """
    train: list[int] = []
    val: list[int] = []
    test: list[int] = []
    for name, group in zip(class_names, images.by_class(len(class_names)), strict=True):
        if len(group) < 2:
            count = counted(len(group), "image")
            raise InputError(
                f"the class {name!r} of {source} has {count}, but two are needed, one to train and one to test with: "
                "add images, or give the data splits of its own (folders train/, val/ and test/)."
            )
        order = [group[i] for i in shuffled([images.ids[i] for i in group], "split")]
        fifth = max(1, round(len(group) / 5))
        kept = fifth if len(group) > 2 else 0
        test += order[:fifth]
        val += order[fifth : fifth + kept]
        train += order[fifth + kept :]
    return images.select(sorted(train)), images.select(sorted(val)), images.select(sorted(test))


def checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return templates as they are, or refuse what are none."""
    templates = listed(templates, "templates")
    if not templates:
        raise InputError("templates must be a list of at least one sentence, got an empty one.")
    for template in templates:
        if not isinstance(template, str):
            raise InputError(f"a template must be a text, got {short(repr(template))}.")
        if template.count("{}") != 1 or any(brace in template.replace("{}", "") for brace in "{}"):
            raise InputError(f"the template {template!r} must have {{}} once, for the class name: 'a photo of a {{}}.'")
    return templates


def few_shot(pools: Pools, settings: DataSettings) -> Dataset:
    """Draw ``shots`` training images per class by ``seed``, and a validation split; all classes are kept.

    For the same seed, k shots are among k+1 shots (not with ``coop_draw``). Validation images: of the data's own
    validation split min(k, 4) a class (with ``all``: all of it); without one, as many training images that are not
    among the shots (with ``all``: a tenth of each class, at least one, is held out). Of a test set both are empty.

    A class with fewer images than asked for gives what it has; without validation images of the data's own, one of them
    is kept for validation unless it is the only one. `Dataset.shortage` tells of them. Without shots there are neither
    training nor validation images.

    Args:
        pools: all images.
        settings: its ``shots`` and ``seed``; ``validation`` images per class replace these numbers, as far as a class has
            them: the shots stay the same, but with ``all`` what is held out of a pool without validation images is no
            shot.

    Raises:
        InputError: for shots or validation images that are not a count.
    """
    shots, seed, validation = settings.shots, settings.seed or 0, settings.validation
    if shots not in ("all", 0) and not _is_count(shots):
        raise InputError(f"shots must be a number from 1 (from 0 with unlabelled images) or all, got {shots!r}.")
    if validation is not None and not _is_count(validation):
        raise InputError(f"validation must be a number of images per class from 1, got {validation!r}.")
    if pools.test_only or shots == 0:
        train = val = ImageSet.empty()
        counts = f"test {len(pools.test)} images, none {'with a label ' if shots == 0 else ''}for training"
    else:
        train, val, counts = _draw(pools, shots, seed, validation)
    rest = _rest(pools, train, val, settings) if settings.unlabelled == REST else ImageSet.empty()
    return Dataset(
        name=pools.name,
        settings=settings.model_copy(update={"classes": "all"}),
        class_names=pools.class_names,
        templates=pools.templates,
        train=train,
        val=val,
        test=pools.test,
        mirror=pools.mirror,
        unlabelled=rest,
        description=f"{len(pools.class_names)} classes; {counts}. {pools.note}".strip(),
    )


def _rest(pools: Pools, train: ImageSet, val: ImageSet, settings: DataSettings) -> ImageSet:
    """The training images that are neither shots nor validation images, or as many of them as were asked for."""
    used = {*train.ids, *val.ids}
    rest = pools.train.select([index for index, id_ in enumerate(pools.train.ids) if id_ not in used])
    if not len(rest):
        raise InputError(
            f"unlabelled=rest, but all {len(train)} training images of {pools.source} that are not for validation are "
            "shots; ask for fewer shots, or name other images."
        )
    return rest.sample(settings.unlabelled_limit, settings.seed or 0)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _draw(pools: Pools, shots: Shots, seed: int, validation: int | None) -> tuple[ImageSet, ImageSet, str]:
    """Training and validation images, and a sentence on them."""
    few = validation or (None if shots == "all" else min(shots, VALIDATION_SHOTS))
    if pools.val is None:
        train, val = _hold_out(pools, shots, few, seed)
        origin = "training images that are not shots"
    else:
        train, val = _draw_both(pools, pools.val, shots, few, seed)
        own = "the fifth set aside for it" if pools.divided else "the data's own"
        origin = own if few is None else f"{few} per class of {own}"
    small = fewer_than(shots, train, pools.class_names)
    how = "all" if shots == "all" else f"{shots} per class{small}, seed {seed}"
    return train, val, f"train {len(train)} images ({how}), validation {len(val)} ({origin}), test {len(pools.test)}"


def _hold_out(pools: Pools, shots: Shots, few: int | None, seed: int) -> tuple[ImageSet, ImageSet]:
    """Shots from the front of each class's random order, ``few`` (or a tenth of it) for validation from its end."""
    train: list[int] = []
    val: list[int] = []
    for order in _orders(pools.train, len(pools.class_names), seed):
        wanted = few or max(1, len(order) // 10)
        # One image a class stays for validation, unless it is the only one.
        most = max(1, len(order) - 1)
        count = max(1, len(order) - wanted) if shots == "all" else min(shots, most)
        held_out = min(wanted, len(order) - count)
        train += order[:count]
        val += order[len(order) - held_out :]
    return pools.train.select(sorted(train)), pools.train.select(sorted(val))


def _draw_both(pools: Pools, own: ImageSet, shots: Shots, few: int | None, seed: int) -> tuple[ImageSet, ImageSet]:
    """Shots of the training images, ``few`` (or all) of the data's own validation images per class."""
    classes = len(pools.class_names)
    if pools.coop_draw and shots != "all":
        generator = random.Random(seed)  # one generator, first for train, then for val
        return _coop_draw(pools.train, shots, generator), _coop_draw(own, few or len(own), generator)
    train = pools.train if shots == "all" else _first(pools.train, shots, classes, seed)
    return train, own if few is None else _first(own, few, classes, seed)


def _orders(images: ImageSet, classes: int, seed: int) -> list[list[int]]:
    """Each class's indices, in the random order of ``seed``."""
    groups = images.by_class(classes)
    return [[group[i] for i in shuffled([images.ids[i] for i in group], seed, "shots")] for group in groups]


def _first(images: ImageSet, count: int, classes: int, seed: int) -> ImageSet:
    return images.select(sorted(index for order in _orders(images, classes, seed) for index in order[:count]))


def _coop_draw(images: ImageSet, count: int, generator: random.Random) -> ImageSet:
    """The draw of Dassl's ``generate_fewshot_dataset``: class by class in order of appearance, Python's generator.

    A class of fewer images is taken whole, as by its default ``repeat=False``, which draws nothing then.
    """
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(images.labels.tolist()):
        groups.setdefault(label, []).append(index)
    drawn = [group if len(group) < count else generator.sample(group, count) for group in groups.values()]
    return images.select([index for group in drawn for index in group])
