"""Readers of the standard data sets, each in the layout its authors or CoOp gave it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from apd.data.dataset import ImageSet
from apd.data.sources.coop import check_inside, image_set, load_coop
from apd.data.sources.folder import class_folders, load_folder
from apd.data.sources.split_names import subfolders
from apd.data.sources.standard import STANDARD, Standard, find_name
from apd.data.splits import Pools
from apd.errors import InputError
from apd.util.files import read_lines, user_path

ROOT = "APD_DATA"
"""The environment variable that names the folder of all data sets."""
VALIDATION_IS_TEST = "Its published validation images are the test split; validation images come from training images."


def parse_standard(source: str) -> tuple[str, Path | None] | None:
    """Name and root of a standard data set: ``dtd`` (its root is ``$APD_DATA``) or ``dtd@ROOT``; None for other text.

    A folder of that name here is meant as a folder, unless ``$APD_DATA`` is set.
    """
    text, at, root = source.partition("@")
    name = find_name(text)
    if name is None:
        return None
    if at:
        return name, user_path(root)
    if os.environ.get(ROOT):
        return name, user_path(os.environ[ROOT])
    return None if Path(source).is_dir() else (name, None)


def load_standard(name: str, root: Path | None, source: str) -> Pools:
    """All images of a standard data set.

    Raises:
        InputError: without a root; for anything missing from the layout, which the message spells out; for another
            number of classes.
    """
    known = STANDARD[name]
    layout = f"{known.folder}/ with {', '.join(known.holds)}"
    online = f" Or load it from the hub: hf:{known.hub}." if known.hub else ""
    if root is None:
        raise InputError(
            f"{source} needs the folder of all data sets: write {name}@ROOT or set {ROOT}=ROOT, where ROOT holds "
            f"{layout}.{online}"
        )
    folder = (root / known.folder).absolute()
    missing = next((entry for entry in known.holds if not _find(folder, entry).exists()), None)
    if missing:
        raise InputError(
            f"{known.title} is looked for in {folder}, but {missing} is not there: {root} must hold {layout}.{online}"
        )
    pools = READERS[known.layout](known, folder, source)
    if len(pools.class_names) != known.classes:
        raise InputError(
            f"{folder} holds {len(pools.class_names)} classes, but {known.title} has {known.classes}: complete it, "
            "or name its images by their own folder or split file."
        )
    return replace(dressed(pools, known), name=name)


def dressed(pools: Pools, known: Standard) -> Pools:
    """Give images the template and the names of a standard data set."""
    names = tuple(known.renamed.get(name, name) for name in pools.class_names)
    return replace(pools, class_names=names, templates=(known.template,))


def _find(folder: Path, entry: str) -> Path:
    """An entry of a data set's folder; ImageNet's own class names serve its siblings, which CoOp copies them to."""
    if entry == "classnames.txt" and not (folder / entry).exists():
        return folder.parent / "imagenet" / entry
    return folder / entry


def _split_file(known: Standard, folder: Path, source: str) -> Pools:
    return load_coop(folder / known.listing, source, folder / known.images)


def _class_folders(known: Standard, folder: Path, source: str) -> Pools:
    return load_folder(folder, source)


def _aircraft(known: Standard, folder: Path, source: str) -> Pools:
    """FGVC-Aircraft as it is published: ``images_variant_train.txt`` and so on, lines of image number and variant."""
    names = read_lines(folder / known.listing)
    labels = {name: label for label, name in enumerate(names)}

    def split(name: str) -> ImageSet:
        file = folder / f"images_variant_{name}.txt"
        pairs = [line.partition(" ")[::2] for line in read_lines(file)]
        unknown = next((variant for _, variant in pairs if variant not in labels), None)
        if unknown is not None:
            raise InputError(f"{file} names the variant {unknown!r}, which is not in {folder / known.listing}.")
        rows = [(f"{image}.jpg", labels[variant], variant) for image, variant in pairs]
        return image_set(rows, folder / known.images, file)

    train, val, test = split("train"), split("val"), split("test")
    return Pools(known.title, source, tuple(names), train, val, test, coop_draw=True)


def _imagenet(known: Standard, folder: Path, source: str) -> Pools:
    """Folders named by WordNet ids; the validation images are the test split, as everywhere in the field."""
    train, val = folder / known.images / "train", folder / known.images / "val"
    folders = [path.name for path in subfolders(train)]
    names = _names(known, folder, folders)
    images, test = class_folders(train, folders, folder), class_folders(val, folders, folder)
    return Pools(known.title, source, names, images, None, test, note=VALIDATION_IS_TEST)


def _imagenet_test(known: Standard, folder: Path, source: str) -> Pools:
    """Folders named by WordNet ids, all of them for testing: ImageNet's classes or some of them."""
    top = folder / known.images
    folders = [path.name for path in subfolders(top)]
    return Pools.of_test(known.title, source, _names(known, folder, folders), class_folders(top, folders, folder))


def _imagenet_v2(known: Standard, folder: Path, source: str) -> Pools:
    """Folders 0 to 999: positions in the sorted list of WordNet ids."""
    names = _names(known, folder, sorted(_listing(known, folder)))
    folders = [str(label) for label in range(len(names))]
    return Pools.of_test(known.title, source, names, class_folders(folder / known.images, folders, folder))


def _tiny_imagenet(known: Standard, folder: Path, source: str) -> Pools:
    """``train/WNID/images/``; ``val/images/`` with their classes in ``val_annotations.txt``; ``test`` has no labels."""
    folders = sorted(read_lines(folder / "wnids.txt"))
    words = _listing(known, folder)
    names = _names(known, folder, folders, {wnid: text.split(",")[0] for wnid, text in words.items()})
    labels = {wnid: label for label, wnid in enumerate(folders)}
    file = folder / "val" / "val_annotations.txt"
    rows = [line.split("\t")[:2] for line in read_lines(file)]
    bad = next((row for row in rows if len(row) < 2 or row[1] not in labels), None)
    if bad is not None:
        raise InputError(f"{file} has a line without an image and a class of wnids.txt between tabs: {bad}.")
    for image, _ in rows:
        check_inside(image, file)
    test = image_set([(f"val/images/{image}", labels[wnid], wnid) for image, wnid in rows], folder, file)
    train = class_folders(folder / "train", folders, folder)
    return Pools(known.title, source, names, train, None, test, note=VALIDATION_IS_TEST)


def _names(known: Standard, folder: Path, folders: list[str], listing: dict[str, str] | None = None) -> tuple[str, ...]:
    """Names of WordNet ids."""
    names = {**(_listing(known, folder) if listing is None else listing), **known.renamed}
    unknown = next((wnid for wnid in folders if wnid not in names), None)
    if unknown is not None:
        raise InputError(
            f"{_find(folder, known.listing)} has no line for the class {unknown}: it needs one per folder."
        )
    return tuple(names[wnid] for wnid in folders)


def _listing(known: Standard, folder: Path) -> dict[str, str]:
    """WordNet ids and names, one pair a line."""
    pairs = (line.split(maxsplit=1) for line in read_lines(_find(folder, known.listing)))
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


READERS: dict[str, Callable[[Standard, Path, str], Pools]] = {
    "split file": _split_file,
    "class folders": _class_folders,
    "aircraft": _aircraft,
    "imagenet": _imagenet,
    "imagenet test": _imagenet_test,
    "imagenet v2": _imagenet_v2,
    "tiny-imagenet": _tiny_imagenet,
}
