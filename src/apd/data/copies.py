"""Images of the test that are copies of images a run learns from: accuracy on them says nothing about new images."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from apd.data.dataset import Dataset, ImageSet
from apd.util.tensors import sha256_of_file
from apd.util.text import printable

LOOKING = 10.0
"""Seconds to look for copies."""


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
            known[size] = {sha256_of_file(other): other_id for other_id, other in alike[size]}
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


def about_copies(data: Dataset) -> str | None:
    """Say how many test images are copies of images that are learned from; None where none was found."""
    copies = find_copies([data.train, data.val, data.unlabelled], data.test)
    if not copies:
        return None
    copy, original = next(iter(copies.items()))
    return (
        f"{len(copies)} of {len(data.test)} test images of {data.name} are copies of training or validation images "
        f"({printable(copy)} is {printable(original)}): accuracy on them says nothing about new images. Remove them on one side."
    )
