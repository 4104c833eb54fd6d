"""Test and validation images that are copies of images a run learns from: they say nothing about new images."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from apd.data.dataset import Dataset, ImageSet
from apd.util.tensors import sha256_of_file
from apd.util.text import printable

LOOKING = 10.0
"""Seconds to look for copies."""
SPLITS = {"train": "training", "val": "validation", "test": "test"}
"""The images of a split in words."""


def find_copies(originals: Sequence[ImageSet], images: ImageSet, seconds: float = LOOKING) -> dict[str, str]:
    """Find images whose file is, byte by byte, that of an original: the id of each, with that of its original.

    Args:
        originals: only their files are looked at, as of ``images``.
        images: among which copies are looked for.
        seconds: after which those that were found are returned.
    """
    until = time.monotonic() + seconds
    alike: dict[int, list[tuple[str, Path]]] = {}
    for part in originals:
        for id_, file, size in _files(part, until):
            alike.setdefault(size, []).append((id_, file))
    known: dict[int, dict[str, str]] = {}
    found = {}
    for id_, file, size in _files(images, until):
        if size not in alike:
            continue
        if size not in known:
            known[size] = {}
            for other_id, other in alike[size]:
                if time.monotonic() > until:
                    break
                known[size][sha256_of_file(other)] = other_id
        if original := known[size].get(sha256_of_file(file)):
            found[id_] = original
    return found


def _files(images: ImageSet, until: float) -> Iterator[tuple[str, Path, int]]:
    """The files that can be opened and are not empty, until a moment on the clock: id, path and size."""
    for id_, source in zip(images.ids, images.sources, strict=True):
        if time.monotonic() > until:
            return
        if isinstance(source, Path) and os.access(source, os.R_OK) and (size := os.path.getsize(source)):
            yield id_, source, size


def about_copies(data: Dataset, split: Literal["val", "test"] = "test") -> str | None:
    """Say how many images of a split are copies of images that are learned from; None where none was found."""
    if split == "val":
        copies = find_copies([data.train, data.unlabelled], data.val)
        of, why = "training images", "what is chosen on them is chosen on images that have been learned"
    else:
        copies = find_copies([data.train, data.val, data.unlabelled], data.test)
        of, why = "training or validation images", "accuracy on them says nothing about new images"
    if not copies:
        return None
    return (
        f"{len(copies)} of {len(data.split(split))} {SPLITS[split]} images of {printable(data.name)} are copies of {of} "
        f"({example(copies)}): {why}. Remove them on one side."
    )


def example(copies: Mapping[str, str]) -> str:
    """Say which image the first copy is."""
    copy, original = next(iter(copies.items()))
    return f"{printable(copy)} is {printable(original)}"
