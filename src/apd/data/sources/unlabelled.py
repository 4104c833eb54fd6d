"""Images without labels: any folder or table of images, whatever its folders or labels are called.

Of a source with splits only the training images are taken, so that nothing is learned from a test split.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from apd.data.dataset import UNKNOWN, Dataset, ImageSet
from apd.data.sources.class_names import warn
from apd.data.sources.folder import images_below, refuse_broken_links
from apd.data.sources.split_names import split_folders
from apd.errors import InputError
from apd.util.text import first_of

PREFIX = "unlabelled/"
"""Stands before the ids of unlabelled images of another source, which would clash with those of the data set."""


def anonymous(images: ImageSet) -> ImageSet:
    """Forget the labels, and put `PREFIX` before the ids."""
    labels = torch.full((len(images),), UNKNOWN, dtype=torch.int64)
    return ImageSet(tuple(f"{PREFIX}{id_}" for id_ in images.ids), labels, images.sources)


def folder_images(path: Path) -> ImageSet:
    """All images below a folder, in no class; of a folder with train, val and test folders those below train alone.

    Raises:
        InputError: for a folder without images, and for a file that is not an image.
    """
    try:
        splits = split_folders(path)
    except InputError:  # folders that only look like splits: here their names do not matter
        splits = {}
    top = splits.get("train", path)
    refuse_broken_links(top)
    paths = images_below(top, {})
    if not paths:
        raise InputError(f"{top} holds no images: name a folder with images in it or in folders below.")
    ids = tuple(image.relative_to(path).as_posix() for image in paths)
    return anonymous(ImageSet(ids, torch.zeros(len(ids), dtype=torch.int64), tuple(paths)))


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
        raise InputError(
            f"data.unlabelled={data.settings.unlabelled}: all its {len(images)} images are shots, validation or test "
            f"images of {data.source}; name other images, or unlabelled=rest."
        )
    if left_out := len(images) - len(kept):
        dropped = sorted(set(range(len(images))) - set(kept))
        names = [images.ids[index].removeprefix(PREFIX) for index in dropped]
        warn(
            f"Of the {len(images)} images of data.unlabelled={data.settings.unlabelled}, {left_out} are left out, because "
            f"they are also shots, validation or test images of {data.source}: {first_of(names, 'images')}."
        )
    return images.select(kept)


def with_unlabelled(data: Dataset, images: ImageSet) -> Dataset:
    """Give a data set unlabelled images, or as many of them as its settings ask for, drawn by the seed."""
    return replace(data, unlabelled=images.sample(data.settings.unlabelled_limit, data.settings.seed or 0))


def _real(path: Path) -> str:
    """The file behind all links; the folder's part is worked out once per folder."""
    return os.path.realpath(path) if os.path.islink(path) else os.path.join(_real_folder(path.parent), path.name)


@lru_cache(maxsize=4096)
def _real_folder(path: Path) -> str:
    return os.path.realpath(path)
