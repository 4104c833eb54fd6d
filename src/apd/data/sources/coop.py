"""The split files of CoOp (``split_zhou_*.json``), the standard splits of prompt learning (arXiv 2109.01134)."""

from __future__ import annotations

import codecs
import os
import posixpath
import re
from pathlib import Path

import torch

from apd.data.dataset import ImageSet
from apd.data.sources.split_names import subfolders
from apd.data.splits import Pools
from apd.errors import InputError
from apd.util.files import read_bounded
from apd.util.pydantic_errors import complaint

Row = tuple[str, int, str]
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:")
"""The start of an absolute path, of POSIX or of Windows."""
_LARGEST = 256 * 2**20
"""Bytes of a split file: two million images."""


def load_coop(path: Path, source: str, images: Path | None = None) -> Pools:
    """All images of a split file ``{"train": [[path, label, class name], ...], "val": [...], "test": [...]}``.

    Paths are relative to ``images``, or else to the file's folder or to a folder beside it; backslashes, written on
    Windows, are read as slashes unless files are called so. Nothing is opened.
    Shots are drawn as CoOp's code draws them, so that a seed names the same images.

    Raises:
        InputError: for a file of another form, labels that are not 0, 1, ..., names that differ within a label,
            images that are not where they should be, and paths that lead out of the images' folder.
    """
    rows = _read(path)
    names = _class_names(rows["train"] + rows["val"] + rows["test"], path)
    root, rows = locate(path, rows, images)
    train, val, test = (image_set(rows[split], root, path) for split in ("train", "val", "test"))
    return Pools(path.parent.resolve().name, source, names, train, val if len(val) else None, test, coop_draw=True)


def _read(path: Path) -> dict[str, list[Row]]:
    from pydantic import TypeAdapter, ValidationError

    try:
        content = read_bounded(path, "a split file lists images", _LARGEST)
        rows = TypeAdapter(dict[str, list[Row]]).validate_json(content.removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        raise InputError(
            f"{path} is not a CoOp split file ({complaint(error.errors()[0])}): "
            'it needs {"train": [[path, label, class name], ...], "val": [...], "test": [...]}.'
        ) from error
    missing = [split for split in ("train", "test") if not rows.get(split)]
    if missing:
        raise InputError(f"{path} has no {missing[0]} images: a CoOp split file has train, val and test.")
    return {split: rows.get(split, []) for split in ("train", "val", "test")}


def _class_names(rows: list[Row], path: Path) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for image, label, name in rows:
        if names.setdefault(label, name) != name:
            raise InputError(f"{path} names label {label} both {names[label]!r} and {name!r} (at {image}).")
    if min(names) < 0:
        image = next(image for image, label, _ in rows if label < 0)
        raise InputError(
            f"{path} has the label {min(names)} (the first below 0 is at {image}): labels must be 0, 1, 2, ..."
        )
    for expected, label in enumerate(sorted(names)):
        if label != expected:
            raise InputError(f"{path} has labels up to {max(names)}, but not {expected}: they must be 0, 1, 2, ...")
    return tuple(names[label].replace("_", " ") for label in range(len(names)))


def locate(path: Path, rows: dict[str, list[Row]], images: Path | None) -> tuple[Path, dict[str, list[Row]]]:
    """The folder of the images (``images``, or else the list's own or one beside it), and the rows as they fit it.

    The first image of every split, and the first with a backslash, must be there.

    Raises:
        InputError: for images that are not there, that are in more than one folder beside the list, and for paths that lead out
            of the folder.
    """
    slashed = {
        split: [(_slashed(image), label, name) for image, label, name in split_rows]
        for split, split_rows in rows.items()
    }
    folder = path.parent
    roots = [images or folder]
    beside = [] if images else list({os.path.realpath(place): place for place in reversed(subfolders(folder))}.values())
    for option in (rows, slashed) if slashed != rows else (rows,):
        needed = [image for split in option.values() for image in _telling([image for image, _, _ in split])]
        for image in needed:
            check_inside(image, path)
        for places in (roots, beside):
            try:
                fitting = [root for root in places if all((root / image).is_file() for image in needed)]
            except OSError as error:  # a name too long for the file system
                raise InputError(f"{path} lists an image that cannot be looked for ({error.strerror}).") from error
            if len(fitting) > 1:
                named = " and ".join(f"{root.name}/" for root in fitting[:2])
                raise InputError(
                    f"{path} lists {needed[0]}, which is in {named}: write the folder into the paths, or move the other away."
                )
            if fitting:
                return fitting[0], option
    first = next(split[0][0] for split in slashed.values() if split)
    where = f"not in {images}" if images else "neither beside it nor in a folder beside it"
    raise InputError(f"{path} lists {first}, which is {where}: put it there.")


def _telling(images: list[str]) -> list[str]:
    """The first image and the first whose path has a backslash: they tell where images lie, and how paths are written."""
    return [*images[:1], *[image for image in images if "\\" in image][:1]]


def _slashed(image: str) -> str:
    return image.replace("\\", "/")


def plain(image: str) -> str:
    """The path of an image without detours, by which two ways of writing it are alike: ``./a/../b.png`` is ``b.png``."""
    return posixpath.normpath(_slashed(image))


def check_inside(image: str, listing: Path) -> None:
    """Refuse the path of an image that leads out of the images' folder, so that a list cannot name any file.

    Raises:
        InputError: for an absolute path, of POSIX or of Windows, and for one that climbs out by ``..``.
    """
    inside = plain(image)
    if _ABSOLUTE.match(image) or inside == ".." or inside.startswith("../"):
        raise InputError(
            f"{listing} lists {image}, which leads out of its folder of images: paths must be relative to that folder."
        )


def image_set(rows: list[Row], root: Path, listing: Path) -> ImageSet:
    """The images of such rows, their ids relative to ``root``; ``listing`` is the file that names them.

    Raises:
        InputError: for a path out of ``root``.
    """
    for image, _, _ in rows:
        check_inside(image, listing)
    labels = torch.tensor([label for _, label, _ in rows], dtype=torch.int64)
    # Without detours, so that no image is there twice in two ways of writing.
    ids = tuple(posixpath.normpath(image) for image, _, _ in rows)
    return ImageSet(ids, labels, tuple(root / image for image, _, _ in rows))
