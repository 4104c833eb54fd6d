"""Images without labels: any folder or table of images, whatever its folders or labels are called.

Of a source with splits only the training images are taken, so that nothing is learned from a test split.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from apd.data.dataset import IN_MEMORY, UNKNOWN, Dataset, ImageSet
from apd.data.settings import DataSettings
from apd.data.sources.class_list import names_alone
from apd.data.sources.class_names import warn
from apd.data.sources.folder import images_below, refuse_broken_links
from apd.data.sources.split_names import held_out_folders, split_folders
from apd.data.splits import VALIDATION_SHOTS, check_names
from apd.errors import InputError
from apd.models.templates import DEFAULT_TEMPLATES
from apd.util.files import read_lines, user_path
from apd.util.messages import get_logger
from apd.util.seeds import shuffled
from apd.util.text import first_of, quoted

log = get_logger("apd.data")

PREFIX = "unlabelled/"
"""Stands before the ids of unlabelled images of another source, which would clash with those of the data set."""


def anonymous(images: ImageSet) -> ImageSet:
    """Forget the labels, and put `PREFIX` before the ids."""
    labels = torch.full((len(images),), UNKNOWN, dtype=torch.int64)
    return ImageSet(tuple(f"{PREFIX}{id_}" for id_ in images.ids), labels, images.sources)


def folder_images(path: Path) -> ImageSet:
    """All images below a folder, in no class; of a folder with train, val and test folders those below train alone.

    Where folders of such names do not divide it, as beside one called ``unlabelled``, those for validation and test are left
    out.

    Raises:
        InputError: for a folder without images, and for a file that is not an image.
    """
    splits = dict[str, Path]()
    with suppress(InputError):  # folders that do not divide it
        splits = split_folders(path)
    held_out = [] if splits else held_out_folders(path)
    top = splits.get("train", path)
    refuse_broken_links(top)
    paths = images_below(top, {})
    if held_out:
        paths = [image for image in paths if not any(image.is_relative_to(folder) for folder in held_out)]
        warn(f"Left out of {path}, because they are called like splits for validation or test: {_named(held_out)}.")
    if not paths:
        but = f" but those of {_named(held_out)}" if held_out else ""
        raise InputError(f"{top} holds no images{but}: name a folder with images in it or in folders below.")
    ids = tuple(image.relative_to(path).as_posix() for image in paths)
    return anonymous(ImageSet(ids, torch.zeros(len(ids), dtype=torch.int64), tuple(paths)))


def _named(folders: Sequence[Path]) -> str:
    return first_of([f"{folder.name}/" for folder in folders], "folders")


def without_known(images: ImageSet, data: Dataset, own: Iterable[ImageSet], same_source: bool) -> ImageSet:
    """Leave out the images whose file also belongs to the data set, and warn of how many they are.

    Args:
        images: the images of the unlabelled source.
        data: whose shots, validation and test images are left out.
        own: further images of the data set that are left out: its own whole validation split.
        same_source: the images are of the data set's own source, so that equal ids mean equal images: how tables, whose
            images are not files, are told apart.

    Raises:
        InputError: if none is left.
    """
    known = [data.train, data.val, data.test, *own]
    files = {_real(source) for part in known for source in part.sources if isinstance(source, Path)}
    ids = {f"{PREFIX}{id_}" for part in known for id_ in part.ids} if same_source else set()
    kept = [
        index
        for index, (id_, source) in enumerate(zip(images.ids, images.sources, strict=True))
        if id_ not in ids and not (isinstance(source, Path) and _real(source) in files)
    ]
    if not kept:
        rest = "" if data.source.startswith(IN_MEMORY) else ", or unlabelled=rest"
        raise InputError(
            f"data.unlabelled={data.settings.unlabelled}: all its {len(images)} images are shots, validation or test "
            f"images of {data.source}; name other images{rest}."
        )
    if left_out := len(images) - len(kept):
        dropped = sorted(set(range(len(images))) - set(kept))
        names = [images.ids[index].removeprefix(PREFIX) for index in dropped]
        warn(
            f"Of the {len(images)} images of data.unlabelled={data.settings.unlabelled}, {left_out} are left out, because "
            f"they are also shots, validation or test images of {data.source}: {first_of(names, 'images')}."
        )
    return images.select(kept)


def with_known_classes(images: ImageSet, pool: ImageSet, same_source: bool) -> ImageSet:
    """Give the images that are also in the data set's training pool their class, by which base and new classes are divided.

    Args:
        images: unlabelled ones; training looks at none of their labels.
        pool: all labelled training images of the data set.
        same_source: as in `without_known`.
    """
    files = {_real(source): i for i, source in enumerate(pool.sources) if isinstance(source, Path)}
    ids = {f"{PREFIX}{id_}": i for i, id_ in enumerate(pool.ids)} if same_source else {}
    classes = [*pool.labels.tolist(), UNKNOWN]
    labels = [
        classes[ids.get(id_, files.get(_real(source), -1) if isinstance(source, Path) else -1)]
        for id_, source in zip(images.ids, images.sources, strict=True)
    ]
    return replace(images, labels=torch.tensor(labels, dtype=torch.int64))


def with_unlabelled(data: Dataset, images: ImageSet) -> Dataset:
    """Give a data set unlabelled images, or as many of them as its settings ask for, drawn by the seed."""
    return replace(data, unlabelled=images.sample(data.settings.unlabelled_limit, data.settings.seed or 0))


def divided(data: Dataset, settings: DataSettings) -> Dataset:
    """Keep the classes that are asked for, and say how many unlabelled images cannot be divided by them.

    Raises:
        InputError: unlabelled images were asked for, and those that were drawn are all of other classes.
    """
    found, which = data.classes(settings.classes), settings.classes
    images = found.unlabelled
    if which == "all":
        return found
    if settings.unlabelled is not None and not len(images):
        raise InputError(
            f"data.classes={which} leaves none of the {len(data.unlabelled)} images of data.unlabelled={settings.unlabelled}: "
            "raise data.unlabelled_limit, which is drawn before classes are divided, or name other images."
        )
    if unknown := int((images.labels == UNKNOWN).sum()):
        log.info(
            f"{unknown} of {len(images)} unlabelled images may show any class: classes={which} cannot divide them."
        )
    return found


def named_by_list(settings: DataSettings, name: str, images: ImageSet) -> Dataset:
    """Make a data set of images without labels, whose classes ``data.class_names`` lists; it has no test images.

    Raises:
        InputError: for a list that cannot be read or has fewer than two names.
    """
    names = read_list(settings.class_names) if isinstance(settings.class_names, str) else settings.class_names
    assert names is not None
    check_names(
        names,
        f"data.class_names={settings.class_names}" if isinstance(settings.class_names, str) else "data.class_names",
    )
    nothing = ImageSet.empty()
    description = f"{len(names)} classes; {len(images)} images without labels, none for the test."
    templates = settings.templates or DEFAULT_TEMPLATES
    uncut = settings.model_copy(update={"classes": "all"})
    return with_unlabelled(
        Dataset(name, uncut, names, templates, nothing, nothing, nothing, description=description), images
    )


def read_list(file: str) -> tuple[str, ...]:
    """Class names from a file with one per line; a WordNet id, or a number that counts them, before every name is left out.

    Raises:
        InputError: for a file that cannot be read.
    """
    path = user_path(file)
    if not path.is_file():
        hint = f" (base-to-new is --set data.classes={file})" if file in ("base", "new", "all") else ""
        raise InputError(
            f"data.class_names={file} (--classes): there is no such file with one class name per line{hint}."
        )
    return tuple(names_alone(read_lines(path, f"data.class_names={file}")))


def with_validation(data: Dataset) -> Dataset:
    """Hold out validation images where there are no shots: some of the unlabelled ones, drawn by the seed.

    As many as ``data.validation`` (4) per class would be, but at most a fifth.

    Raises:
        InputError: for fewer than 5 unlabelled images.
    """
    images, wanted = data.unlabelled, data.settings.validation or VALIDATION_SHOTS
    count = min(wanted * len(data.class_names), len(images) // 5)
    if not count:
        raise InputError(
            f"{len(images)} unlabelled images are too few to train on without any label: 5 are needed, one of them for "
            f"validation. Add images, or train on labelled ones (apd train {quoted(data.source)})."
        )
    order = shuffled(images.ids, data.settings.seed or 0, "validation")
    val, rest = (images.select(sorted(part)) for part in (order[:count], order[count:]))
    return replace(data, val=val, unlabelled=rest)


def _real(path: Path) -> str:
    """The file behind all links; the folder's part is worked out once per folder."""
    return os.path.realpath(path) if os.path.islink(path) else os.path.join(_real_folder(path.parent), path.name)


@lru_cache(maxsize=4096)
def _real_folder(path: Path) -> str:
    return os.path.realpath(path)
