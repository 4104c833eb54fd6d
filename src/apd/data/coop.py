"""The split files of CoOp (``split_zhou_*.json``), the standard splits of prompt learning (arXiv 2109.01134)."""

from __future__ import annotations

from pathlib import Path

import torch

from apd.data.dataset import ImageSet
from apd.data.shots import Pools
from apd.errors import InputError

Row = tuple[str, int, str]


def load_coop(path: Path, source: str, images: Path | None = None) -> Pools:
    """All images of a split file ``{"train": [[path, label, class name], ...], "val": [...], "test": [...]}``.

    Paths are relative to ``images``, or else to the file's folder or to a folder beside it. Nothing is opened.
    Shots are drawn as CoOp's code draws them, so that a seed names the same images.

    Raises:
        InputError: for a file of another form, labels that are not 0, 1, ..., names that differ within a label, and
            images that are not where they should be.
    """
    rows = _read(path)
    names = _class_names(rows["train"] + rows["val"] + rows["test"], path)
    root = _image_root(path, rows, images)
    train, val, test = (image_set(rows[split], root) for split in ("train", "val", "test"))
    return Pools(path.parent.resolve().name, source, names, train, val if len(val) else None, test, coop_draw=True)


def _read(path: Path) -> dict[str, list[Row]]:
    from pydantic import TypeAdapter, ValidationError

    try:
        rows = TypeAdapter(dict[str, list[Row]]).validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}).") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(
            f"{path} is no CoOp split file ({where}: {first['msg']}): "
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
    for expected, label in enumerate(sorted(names)):
        if label != expected:
            raise InputError(f"{path} has labels up to {max(names)}, but not {expected}: they must be 0, 1, 2, ...")
    return tuple(names[label].replace("_", " ") for label in range(len(names)))


def _image_root(path: Path, rows: dict[str, list[Row]], images: Path | None) -> Path:
    """The folder in which the first image of every split is: ``images``, or else the file's own or one beside it."""
    firsts = [split[0][0] for split in rows.values() if split]
    folder = path.parent
    for root in [images] if images else [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]:
        if all((root / first).is_file() for first in firsts):
            return root
    where = f"not in {images}" if images else "neither beside it nor in a folder beside it"
    raise InputError(f"{path} lists {firsts[0]}, which is {where}: put it there.")


def image_set(rows: list[Row], root: Path) -> ImageSet:
    """The images of such rows, their ids relative to ``root``."""
    labels = torch.tensor([label for _, label, _ in rows], dtype=torch.int64)
    return ImageSet(tuple(image for image, _, _ in rows), labels, tuple(root / image for image, _, _ in rows))
