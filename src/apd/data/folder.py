"""A folder of class folders, with or without train, val and test above them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from apd.data.dataset import ImageSet
from apd.data.names import read_class_names, readable_names
from apd.data.shots import Pools, split_pool
from apd.data.unreadable import CAMERA_SUFFIXES
from apd.errors import InputError

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
    | CAMERA_SUFFIXES  # counted among the images, though most cannot be read
)
HARMLESS_SUFFIXES = frozenset({".csv", ".html", ".json", ".md", ".txt", ".xml", ".yaml", ".yml"})
HARMLESS_NAMES = frozenset({"thumbs.db", "desktop.ini", "license", "readme"})
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def load_folder(path: Path, source: str) -> Pools:
    """All images of a folder; labels follow the sorted names of the class folders.

    Readable names come from ``classes.txt`` in the folder, or else from the folders' names. Without train and test
    folders each class is split 60/20/20 into train, val and test, the same way whatever the seed.

    Raises:
        InputError: for a folder without class folders, an empty class, classes that differ between splits, a file that
            is no image, and a ``classes.txt`` that does not fit.
    """
    splits = _split_folders(path)
    top = splits.get("train", path)
    folders = [folder.name for folder in subfolders(top)]
    if not folders:
        raise InputError(f"{top} holds no class folders: put the images of each class into a folder of its name.")
    if len(folders) == 1:
        raise InputError(_one_class(top, top / folders[0]))
    for folder in folders:
        if len(inner := _split_names(top / folder)) > 1:
            raise InputError(f"{top / folder} holds {inner[0]}/ and {inner[1]}/, so it is a data set: name that one.")
    listing = path / "classes.txt"
    names = read_class_names(listing, folders) if listing.is_file() else readable_names(folders)
    if splits:
        sets = {split: class_folders(folder, folders, path) for split, folder in splits.items()}
        return Pools(path.name, source, names, sets["train"], sets.get("val"), sets["test"])
    train, val, test = split_pool(class_folders(path, folders, path), names, source)
    note = "The folder has no splits: each class is split 60/20/20 by a hash of the file names."
    return Pools(path.name, source, names, train, val, test, note=note, divided=True)


def _one_class(top: Path, only: Path) -> str:
    inner = [only] if subfolders(only) else []
    meant = [str(path) for path in (*inner, *sorted(top.glob("split_*.json")))]
    way_out = f"did you mean {' or '.join(meant)}?" if meant else "at least two classes are needed."
    return f"{top} holds one class folder only ({only.name}/): {way_out}"


def subfolders(path: Path) -> list[Path]:
    """The visible folders in ``path``, sorted."""
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def _split_names(path: Path) -> list[str]:
    return [folder.name for folder in subfolders(path) if folder.name.lower() in SPLITS]


def _split_folders(path: Path) -> dict[str, Path]:
    """The folders of train, val and test; empty for class folders without splits."""
    folders = subfolders(path)
    found = [(SPLITS[folder.name.lower()], folder) for folder in folders if folder.name.lower() in SPLITS]
    others = [folder.name for folder in folders if folder.name.lower() not in SPLITS]
    if not found or ([split for split, _ in found] == ["train"] and others):  # "train" alone is a vehicle
        return {}
    named = ", ".join(f"{folder.name}/" for _, folder in found)
    if others:
        raise InputError(f"{path} holds {others[0]}/ beside the splits {named}: move it out of the way.")
    splits = dict(found)
    if len(splits) != len(found):
        raise InputError(f"{path} holds one split twice ({named}): keep one of them.")
    missing = [split for split in ("train", "test") if split not in splits]
    if missing:
        way_out = "add it or rename another (only val/ may be missing: its images are then taken from train/)"
        raise InputError(f"{path} holds {named} but no {missing[0]}/: {way_out}.")
    return splits


def class_folders(top: Path, folders: Sequence[str], root: Path) -> ImageSet:
    """The images in the class folders of ``top``, labelled in the order of ``folders``; ids are relative to ``root``.

    Raises:
        InputError: unless exactly these folders are there; for an empty one, and for a file that is no image.
    """
    there = {folder.name for folder in subfolders(top)}
    for name in sorted(there.symmetric_difference(folders)):
        has = "has" if name in there else "lacks"
        raise InputError(f"the class folder {name}/ is not in every split: {top} {has} it.")
    stray = next((p for p in sorted(top.iterdir()) if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES), None)
    if stray:
        raise InputError(f"{stray} lies beside the class folders, so its class is unknown: move it into one of them.")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(folders):
        images = _images_below(top / name)
        if not images:
            raise InputError(f"the class folder {top / name} holds no images: add some, or remove the folder.")
        paths += images
        labels += [label] * len(images)
    ids = tuple(path.relative_to(root).as_posix() for path in paths)
    return ImageSet(ids, torch.tensor(labels, dtype=torch.int64), tuple(paths))


def _images_below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise InputError(f"cannot list {error.filename} ({error.strerror}).") from error

    images: list[Path] = []
    for parent, below, files in os.walk(folder, onerror=refuse):
        below[:] = sorted(name for name in below if not name.startswith((".", "__")))
        for name in sorted(files):
            suffix = Path(name).suffix.lower()
            if suffix in IMAGE_SUFFIXES and not name.startswith("."):
                images.append(Path(parent, name))
            elif not (name.startswith(".") or suffix in HARMLESS_SUFFIXES or name.lower() in HARMLESS_NAMES):
                raise InputError(f"{Path(parent, name)} is not an image: convert it or move it elsewhere.")
    return images
