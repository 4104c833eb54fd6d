"""Data sets in the format of the Hugging Face hub: a hub id, parquet files, or a saved folder."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from apd.data.dataset import ImageSet
from apd.data.decode import open_image
from apd.data.sources.class_names import readable_names
from apd.data.sources.folder import IMAGE_SUFFIXES
from apd.data.sources.split_column import split_by_column
from apd.data.sources.split_names import WORDS
from apd.data.sources.table_files import refuse_other_orders
from apd.data.splits import Pools, split_pool
from apd.data.unreadable import Source
from apd.errors import InputError
from apd.util.extras import import_extra
from apd.util.files import is_lfs_pointer
from apd.util.hub import can_be_on_hub, hub_or_cache
from apd.util.progress import counted
from apd.util.text import one_line, short

Columns = tuple[str, str]
Splits = Mapping[str, Any]
SAVED = ("dataset_dict.json", "state.json")
_COLUMNS = "train with --set data.columns=[IMAGE,LABEL], in Python columns=(image, label)"
_UNLABELLED = ("unlabelled", "unlabeled", "unsupervised")
"""Splits that are for training without labels."""


def load_hub(spec: str, columns: Columns | None = None) -> Pools:
    """A data set of the hub, ``owner/name`` or ``owner/name:configuration``; downloaded once, then read from the cache.

    Raises:
        InputError: for an unknown or unreachable data set, and for columns that do not fit.
    """
    return _pools(hub_splits(spec), spec.partition(":")[0], f"hf:{spec}", columns)


def hub_splits(spec: str) -> Splits:
    """The tables of a data set of the hub by split."""
    name, _, configuration = spec.partition(":")
    if not can_be_on_hub(name):
        raise InputError(f"hf:{spec} names no data set of the hub: hf:OWNER/NAME[:CONFIGURATION].{_if_a_path(name)}")
    _need_datasets(f"hf:{spec}")
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        with hub_or_cache(name):
            splits: Splits = load_dataset(name, configuration or None)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise InputError(
            f"cannot load hf:{spec} ({one_line(error, 300)}): check the name and the network; offline, it must be in the cache."
        ) from error
    return split_by_column(splits, f"hf:{spec}")


def _if_a_path(name: str) -> str:
    """The way out for a path after ``hf:``; empty for anything else."""
    return f" A folder or file is given without hf:, {name}." if name and Path(name).exists() else ""


def load_parquet(path: Path, source: str, columns: Columns | None = None) -> Pools:
    """One parquet file, or a folder of them named after their splits (``train-00000-of-00001.parquet``).

    Raises:
        InputError: for files that cannot be read, and for columns that do not fit.
    """
    return _pools(parquet_splits(path, source), path.stem, source, columns)


def parquet_splits(path: Path, source: str) -> Splits:
    """The tables of one parquet file, or of a folder of them, by split."""
    _need_datasets(source)
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    pointer = next(filter(is_lfs_pointer, sorted(path.glob("*.parquet")) if path.is_dir() else [path]), None)
    if pointer is not None:
        raise InputError(f"{pointer} is a Git LFS pointer instead of a table; to get the table: git lfs pull")
    if path.is_dir():
        refuse_other_orders(sorted(path.rglob("*.parquet")))
    files = {"data_dir": str(path)} if path.is_dir() else {"data_files": glob.escape(str(path))}
    try:
        splits: Splits = load_dataset("parquet", **files)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise InputError(f"cannot read {path} as parquet ({one_line(error.__cause__ or error, 300)}).") from error
    return split_by_column(splits, source)


def is_saved(path: Path) -> bool:
    """Whether the folder was written by ``save_to_disk``."""
    return any((path / name).is_file() for name in SAVED)


def table_files(path: Path) -> frozenset[str]:
    """The real paths of the files of a parquet or saved table, whichever way it is named; none for anything else."""
    if path.suffix == ".parquet" and path.is_file():
        return frozenset((os.path.realpath(path),))
    if path.is_dir() and is_saved(path):
        return frozenset(map(os.path.realpath, path.rglob("*.arrow")))
    return frozenset(map(os.path.realpath, path.rglob("*.parquet"))) if is_parquet_folder(path) else frozenset()


def is_parquet_folder(path: Path) -> bool:
    """Whether a folder holds parquet files; one called ``metadata`` may be about the images in folders beside it."""
    files = [*path.glob("*.parquet")] if path.is_dir() else []
    about = all(file.stem.casefold() == "metadata" for file in files)
    return bool(files) and not (about and any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.glob("*/*")))


def load_saved(path: Path, source: str, columns: Columns | None = None) -> Pools:
    """A folder written by ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``.

    Raises:
        InputError: for a folder that cannot be read, and for columns that do not fit.
    """
    return _pools(saved_splits(path, source), path.name, source, columns)


def saved_splits(path: Path, source: str) -> Splits:
    """The tables of a folder written by ``save_to_disk``, by split; a table without splits is ``train``."""
    _need_datasets(source)
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot read the saved data set {path} ({one_line(error, 300)}).") from error
    return split_by_column(saved if isinstance(saved, DatasetDict) else {"train": saved}, source)


def rows_without_labels(
    splits: Splits, source: str, columns: Columns | None = None, required: bool = False
) -> ImageSet:
    """The images of the training split, and of one that is called unlabelled; nothing but the image column is read.

    Where neither is there: of all splits that are not called by a word for validation or testing.

    Args:
        splits: tables by split.
        source: for messages.
        columns: the first is the image column, if the tables have it.
        required: they must have it.

    Raises:
        InputError: no such split, or no column that is clearly that of the images.
    """
    use = {name: WORDS.get(name.casefold(), name.casefold()) for name in splits}
    chosen = {name: rows for name, rows in splits.items() if use[name] in ("train", *_UNLABELLED)}
    chosen = chosen or {name: rows for name, rows in splits.items() if use[name] not in ("val", "test")}
    if not chosen:
        raise InputError(f"{source} has the splits {', '.join(splits)} only, which are not for training.")
    ids: list[str] = []
    sources: list[Source] = []
    for split, rows in chosen.items():
        if columns and required:
            _need_columns(rows, columns[:1], source)
        asked = columns[0] if columns and columns[0] in rows.column_names else None
        image = asked or _image_column(rows.features, source)
        sources += _openers(rows, image, source)
        ids += [f"{split}/{row}" for row in range(len(rows))]
    return ImageSet(tuple(ids), torch.zeros(len(ids), dtype=torch.int64), tuple(sources))


def _need_columns(rows: Any, columns: Sequence[str], source: str) -> None:
    for column in columns:
        if column not in rows.column_names:
            raise InputError(f"{source} has no column {column!r}. It has: {', '.join(rows.column_names)}.")


def _image_column(features: Mapping[str, Any], source: str) -> str:
    found = _image_columns(features)
    if len(found) != 1:
        raise InputError(
            f"{source} needs one image column, but has {', '.join(found) or 'none'} among {', '.join(features)}; keep one."
        )
    return found[0]


def _image_columns(features: Mapping[str, Any]) -> list[str]:
    from datasets import Image as ImageFeature

    own = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
    encoded = [name for name, feature in features.items() if _holds_bytes(feature)]
    return own or ([name for name in ("image", "img") if name in features] if len(encoded) < 2 else encoded)


def _holds_bytes(feature: Any) -> bool:
    """Whether a column may hold encoded images, though it is not marked as one."""
    return (isinstance(feature, dict) and "bytes" in feature) or getattr(feature, "dtype", "") in (
        "binary",
        "large_binary",
    )


def _need_datasets(source: str) -> None:
    import_extra("datasets", "hub", f"the data set {source}")


def _pools(splits: Splits, name: str, source: str, columns: Columns | None) -> Pools:
    called = _by_use(splits, source)
    tests_alone = set(called) == {"test"}
    if "train" not in called and not tests_alone:
        raise InputError(f"{source} has the splits {', '.join(splits)}, but no train.")
    first = splits[called["test" if tests_alone else "train"]]
    image, label = columns or _find_columns(first.features, source)
    _need_columns(first, (image, label), source)
    names = _class_names(first, label, source)
    sets = {use: _image_set(splits[split], split, (image, label), names, source) for use, split in called.items()}
    own, test = sets.get("val"), sets.get("test")
    if test is not None and bool((test.labels < 0).all()):  # published without labels
        test = None
    readable = readable_names(names)
    if tests_alone:
        if test is None:
            raise InputError(f"{source} has a test split only, and its labels were not published (all are -1).")
        return Pools.of_test(name, source, readable, test)
    if test is not None:
        return Pools(name, source, readable, sets["train"], own, test)
    if own is not None:
        note = "It has no labelled test split: its validation split is the test split here."
        return Pools(name, source, readable, sets["train"], None, own, note=note)
    train, val, test = split_pool(sets["train"], readable, source)
    note = "It has one split only: each class is split 60/20/20 by a hash of the row numbers."
    return Pools(name, source, readable, train, val, test, note=note, divided=True)


def _by_use(splits: Splits, source: str) -> dict[str, str]:
    """What each split is called that is for training, validation or testing; others, as one without labels, are left out.

    Raises:
        InputError: two for one use.
    """
    called: dict[str, str] = {}
    for name in splits:
        use = WORDS.get(name.casefold())
        if use in called:
            raise InputError(f"{source} has two splits for one use, {called[use]} and {name}: rename or remove one.")
        if use:
            called[use] = name
    return called


def _find_columns(features: Mapping[str, Any], source: str) -> Columns:
    from datasets import ClassLabel, Value

    def of(*kinds: Any) -> list[str]:
        return [name for name, feature in features.items() if isinstance(feature, kinds)]

    images = _image_columns(features)
    labels = of(ClassLabel) or [name for name in of(Value) if name in ("label", "labels", "class", "class_name")]
    if len(images) != 1 or len(labels) != 1:
        found = f"image: {', '.join(images) or 'none'}; label: {', '.join(labels) or 'none'}"
        raise InputError(f"{source} needs one image and one label column ({found}): {_COLUMNS}.")
    return images[0], labels[0]


def _class_names(rows: Any, label: str, source: str) -> list[str]:
    from datasets import ClassLabel, Value

    feature = rows.features[label]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    texts = isinstance(feature, Value)  # lists and structures have no different values
    names = [name for name in rows.unique(label) if name is not None] if texts else []  # missing ones are told by row
    if not texts or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"the label column {label!r} of {source} has no class names: "
            f"it must be a ClassLabel or text. To use other columns, {_COLUMNS}."
        )
    return sorted(names)


def _labels(rows: Any, split: str, label: str, names: list[str], source: str) -> torch.Tensor:
    """Labels as numbers; all of a test split may be -1, which means that they were not published."""
    own = getattr(rows.features[label], "names", names)
    if list(own) != names:
        differs = next((pair for pair in zip(own, names, strict=False) if pair[0] != pair[1]), (len(own), len(names)))
        raise InputError(
            f"the split {split} of {source} names its classes differently from train: {differs[0]!r}, {differs[1]!r}."
        )
    values = np.asarray(rows.with_format("numpy")[label][:])
    if values.dtype.kind in "iu":
        labels = torch.from_numpy(values.astype(np.int64))
        if WORDS[split.casefold()] == "test" and bool((labels == -1).all()):
            return labels
        wrong = torch.nonzero((labels < 0) | (labels >= len(names))).flatten().tolist()
        if wrong:
            raise InputError(
                f"the split {split} of {source} has the label {int(labels[wrong[0]])} in {_first_row(wrong)}, but its classes "
                f"have the labels 0 to {len(names) - 1}: remove or correct these rows."
            )
        return labels
    texts = rows.with_format(None)[label][:]
    missing = [row for row, text in enumerate(texts) if text is None]
    if missing:
        raise InputError(
            f"the split {split} of {source} has no label in {_first_row(missing)}: remove these rows or fill "
            f"the column {label!r}."
        )
    numbers = {name: number for number, name in enumerate(names)}
    unknown = next((text for text in texts if text not in numbers), None)
    if unknown is not None:
        raise InputError(f"the split {split} of {source} has the label {unknown!r}, which its train split lacks.")
    return torch.tensor([numbers[text] for text in texts], dtype=torch.int64)


def _first_row(rows: list[int]) -> str:
    return f"row {rows[0]}" + (f" and {counted(len(rows) - 1, 'other')}" if len(rows) > 1 else "")


def _image_set(rows: Any, split: str, columns: Columns, names: list[str], source: str) -> ImageSet:
    image, label = columns
    labels = _labels(rows, split, label, names, source)
    return ImageSet(tuple(f"{split}/{row}" for row in range(len(rows))), labels, tuple(_openers(rows, image, source)))


def _openers(rows: Any, image: str, source: str) -> list[Source]:
    """A function for each row that opens its image."""
    from datasets import Image as ImageFeature

    own = rows.select_columns([image])
    try:
        files = own.cast_column(image, ImageFeature(decode=False))
    except (ValueError, TypeError, NotImplementedError) as error:  # Arrow's own are among them
        kind = getattr(own.features[image], "dtype", "other values")
        raise InputError(
            f"the image column {image!r} of {source} holds {kind}: it must hold encoded images. To use other columns, {_COLUMNS}."
        ) from error
    return [partial(_open, files, image, row) for row in range(len(rows))]


def _open(files: Any, column: str, row: int) -> Image.Image:
    stored = files[row][column]
    if stored is None:
        raise ValueError("the row has no image")
    if stored["bytes"] is not None:
        return open_image(io.BytesIO(stored["bytes"]))
    path = Path(stored["path"]).resolve()
    if not any(path.is_relative_to(cache) for cache in _caches()):
        raise ValueError(f"the row names the file {short(stored['path'])} instead of holding an image")
    return open_image(path)


@cache
def _caches() -> tuple[Path, ...]:
    """The folders of downloads, where the tables of the hub may name files; elsewhere a row could name any file."""
    from datasets import config
    from huggingface_hub import constants

    return tuple(Path(folder).resolve() for folder in (config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE))
