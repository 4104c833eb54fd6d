"""A folder of class folders, with or without train, val and test above them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from apd.data.dataset import ImageSet
from apd.data.sources.class_list import read_class_names
from apd.data.sources.class_names import readable_names, warn
from apd.data.sources.split_names import WORDS, hidden, split_folders, subfolders
from apd.data.splits import Pools, split_pool
from apd.data.unreadable import CAMERA_SUFFIXES
from apd.errors import InputError
from apd.util.text import first_of, quoted

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
    | CAMERA_SUFFIXES  # counted among the images, though most cannot be read
)
_NO_PHOTOS = re.compile(r"(gt_?|ground_?truth_?)?(masks?|labels?|annotations?|segmentations?|depths?)?", re.IGNORECASE)
HARMLESS_SUFFIXES = frozenset({".csv", ".html", ".json", ".md", ".txt", ".xml", ".yaml", ".yml"})
_DEEPEST = 100
HARMLESS_NAMES = frozenset({"thumbs.db", "desktop.ini", "license", "readme"})


def load_folder(path: Path, source: str) -> Pools:
    """All images of a folder; labels follow the sorted names of the class folders.

    Readable names come from ``classes.txt`` in the folder, or else from the folders' names. Without train and test
    folders each class is split 60/20/20 into train, val and test, the same way whatever the seed.

    Raises:
        InputError: for a folder without class folders, an empty class, classes that differ between splits, folders
            above the class folders, a file that is not an image, and a ``classes.txt`` that does not fit.
    """
    refuse_broken_links(path)
    splits = split_folders(path)
    top = splits.get("train", path)
    refuse_broken_links(top)
    folders = [folder.name for folder in subfolders(top)]
    if not folders:
        raise InputError(f"{top} holds no class folders: put the images of each class into a folder of its name.")
    if len(folders) == 1:
        raise InputError(_one_class(top, top / folders[0]))
    check_depth(top, folders)
    _warn_of_left_out({path, *splits.values()})
    listing = _class_list(path, splits.values())
    names = read_class_names(listing, folders) if listing else readable_names(folders)
    if splits:
        seen: dict[str, str] = {}
        sets = {split: class_folders(folder, folders, path, seen) for split, folder in splits.items()}
        return Pools(path.name, source, names, sets["train"], sets.get("val"), sets["test"])
    train, val, test = split_pool(class_folders(path, folders, path), names, source)
    note = "The folder has no splits: each class is split 60/20/20 by a hash of the file names."
    return Pools(path.name, source, names, train, val, test, note=note, divided=True)


def _class_list(path: Path, splits: Iterable[Path]) -> Path | None:
    """The ``classes.txt`` beside the class folders or the splits, in any case; None for none."""
    found = {
        top: [each for each in sorted(top.iterdir()) if each.name.casefold() == "classes.txt"]
        for top in {path, *splits}
    }
    for top in sorted(found.keys() - {path}):
        for each in found[top]:
            warn(f"{each} is not read: a list of the class names stands in {path}.")
    return next((each for each in found[path] if each.is_file()), None)


def _warn_of_left_out(tops: Iterable[Path]) -> None:
    """Log a warning that names the folders with images beside the class folders that are not read as classes."""
    for top in sorted(tops):
        folders = [entry.name for entry in top.iterdir() if entry.is_dir() and hidden(entry.name)]
        if left_out := [f"{name}/" for name in sorted(folders) if _holds_images(top / name)]:
            warn(
                f"Not read as classes, because of their names: {first_of(left_out, 'folders')} of {top}, which hold images. "
                "If they are classes, rename them."
            )


def _holds_images(folder: Path) -> bool:
    names = (name for _, _, names in os.walk(folder) for name in names)
    return any(Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".") for name in names)


def _one_class(top: Path, only: Path) -> str:
    inner = [only] if subfolders(only) else []
    meant = [str(path) for path in (*inner, *sorted(top.glob("split_*.json")))]
    way_out = f"did you mean {' or '.join(meant)}?" if meant else "at least two classes are needed."
    return f"{top} holds one class folder only ({only.name}/): {way_out}"


def check_depth(top: Path, folders: Sequence[str]) -> None:
    """Refuse folders that are not classes but hold class folders: data sets, domains, letters; warn of other groups.

    Raises:
        InputError: naming what to give instead.
    """
    inside = {folder: _folders_inside(top / folder) for folder in folders}
    for folder, inner in inside.items():
        if len(splits := [name for name in inner if name.casefold() in WORDS]) > 1:
            if not _folders_inside(top / folder / splits[0]):
                raise InputError(
                    f"{top / folder} holds {splits[0]}/ and {splits[1]}/ with images: splits lie above the classes, as in "
                    f"{splits[0]}/{folder}/ and {splits[1]}/{folder}/; move them."
                )
            raise InputError(f"{top / folder} holds {splits[0]}/ and {splits[1]}/, so it is a data set: name that one.")
    if not all(inside.values()):
        return
    first = f"{folders[0]}/{inside[folders[0]][0]}"
    if all(
        len(folder) == 1 and all(n.casefold().startswith(folder.casefold()) for n in inside[folder])
        for folder in folders
    ):
        raise InputError(
            f"{top} holds letters above the class folders ({first}), as SUN397 does: move the class folders up one "
            "level; SUN397 itself is read by its split file (apd train sun397@ROOT, see apd list data)."
        )
    shared = sorted(set.intersection(*map(set, inside.values())))
    masks = [name for name in shared if _NO_PHOTOS.fullmatch(name)]
    if masks and len(shared) > 1:
        raise InputError(
            f"every class folder of {top} holds {masks[0]}/, and all images below a class folder are read as photos of the "
            f"class ({first}): move {masks[0]}/ elsewhere."
        )
    if len(shared) > 1:
        photo = next((name for name in folders if re.search("photo|real", name, re.IGNORECASE)), folders[0])
        other = next(name for name in folders if name != photo)
        raise InputError(
            f"every folder of {top} holds {shared[0]}/ and {shared[1]}/, so these are domains, not classes "
            f"({first_of(folders, 'folders')}): train on one (apd train {quoted(top / photo)}), evaluate on the others "
            f"under domain shift (apd evaluate RUN --data {quoted(top / other)}); splits are called train/, val/ and test/."
        )
    if all(len(inner) > 1 for inner in inside.values()):
        warn(
            f"Every class folder of {top} holds only folders ({first}): all images below {folders[0]}/ are of one class "
            f"{folders[0]}. If the inner folders are the classes, move them up one level."
        )


def _folders_inside(folder: Path) -> list[str]:
    """The folders in a class folder, if it holds no images beside them."""
    names = []
    try:
        found = os.scandir(folder)
    except OSError as error:
        raise InputError(f"Cannot list {folder} ({error.strerror}): let it be read, or remove it.") from error
    with found as entries:
        for entry in entries:
            if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and not entry.is_dir():
                return []
            if not hidden(entry.name) and entry.is_dir():
                names.append(entry.name)
    return sorted(names)


def refuse_broken_links(folder: Path) -> None:
    """Raise an error for broken links, whose images would be missing without notice.

    Raises:
        InputError: naming the link.
    """
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.exists() and not hidden(path.name) and not _is_harmless(path.name):
            raise InputError(
                f"{path} is a link to {os.readlink(path)}, which is not there: restore it or remove the link."
            )


def class_folders(top: Path, folders: Sequence[str], root: Path, seen: dict[str, str] | None = None) -> ImageSet:
    """The images in the class folders of ``top``, labelled in the order of ``folders``; ids are relative to ``root``.

    Links are followed. ``seen`` keeps the real folders, so that none is read twice, in this split or another.

    Raises:
        InputError: unless exactly these folders are there; for an empty one, and for a file that is not an image.
    """
    there = {folder.name for folder in subfolders(top)}
    for name in sorted(there.symmetric_difference(folders)):
        has = "has" if name in there else "lacks"
        raise InputError(f"the class folder {name}/ is not in every split: {top} {has} it.")
    stray = next((p for p in sorted(top.iterdir()) if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES), None)
    if stray:
        raise InputError(f"{stray} lies beside the class folders, so its class is unknown: move it into one of them.")
    refuse_broken_links(top)
    seen = {} if seen is None else seen
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(folders):
        images = images_below(top / name, seen)
        if not images:
            raise InputError(f"the class folder {top / name} holds no images: add some, or remove the folder.")
        paths += images
        labels += [label] * len(images)
    ids = tuple(path.relative_to(root).as_posix() for path in paths)
    return ImageSet(ids, torch.tensor(labels, dtype=torch.int64), tuple(paths))


def images_below(folder: Path, seen: dict[str, str]) -> list[Path]:
    """The images below a class folder, through links; ``seen`` knows real folders and files by the path they were met at."""

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot list {error.filename} ({error.strerror}).") from error

    images: list[Path] = []
    start = Path(os.path.realpath(folder))
    depth = len(folder.parts) + _DEEPEST
    for parent, below, files in os.walk(folder, onerror=refuse, followlinks=True):
        if parent.count(os.sep) > depth:  # Python's own walk ends in a RecursionError
            raise InputError(f"{folder} holds folders {_DEEPEST} deep in each other: move the images up.")
        real = os.path.realpath(parent)
        if parent != str(folder) and start.is_relative_to(real):
            raise InputError(f"{parent} is a link to {real}, in which it lies: remove the link.")
        if (first := seen.setdefault(real, parent)) != parent:
            raise InputError(f"{parent} and {first} are one folder by a link: an image must have one class, once.")
        below[:] = sorted(name for name in below if not hidden(name))
        with os.scandir(parent) as entries:
            links = {entry.name for entry in entries if entry.is_symlink()}
        for name in sorted(files):
            suffix = Path(name).suffix.lower()
            if suffix in IMAGE_SUFFIXES and not name.startswith("."):
                images.append(Path(parent, name))
                _refuse_second(images[-1], os.path.join(real, name), name in links, seen)
            elif not _is_harmless(name):
                raise InputError(f"{Path(parent, name)} is not an image: convert it or move it elsewhere.")
    return images


def _refuse_second(path: Path, real: str, is_link: bool, seen: dict[str, str]) -> None:
    """Refuse an image that was met before, where this path or that one is a link."""
    first = seen.get(real)
    if is_link:
        real = os.path.realpath(path)
        folder, name = os.path.split(real)
        first = seen.get(real) or (os.path.join(seen[folder], name) if folder in seen else None)
        seen[real] = str(path)
    if first:
        raise InputError(
            f"{path} and {first} are one image by a link: an image may be in one class and one split, once."
        )


def _is_harmless(name: str) -> bool:
    """Whether a file that is not an image may lie among images."""
    return name.startswith(".") or Path(name).suffix.lower() in HARMLESS_SUFFIXES or name.lower() in HARMLESS_NAMES
