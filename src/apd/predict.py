"""From image files to named classes with probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from apd.data.decode import decode_all
from apd.errors import InputError
from apd.loading import load_run

_BATCH = 64


def predict_files(
    run: str | Path, images: Sequence[Path], *, top: int = 3, model: str | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """The most probable classes of image files, images turned and resized as in training.

    Args:
        run: run folder.
        images: image files.
        top: how many classes.
        model: where the CLIP is now, if it has moved.

    Returns:
        One ``{"image": path, "classes": [{"class": name, "probability": p}, …]}`` a file, most probable class first;
        and a sentence on each file that cannot be read.

    Raises:
        InputError: no run, a missing file, or a folder.
    """
    for path in images:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name its image files, as in {path}/*.jpg.")
        if not path.is_file():
            raise InputError(f"There is no file {path}.")
    classifier = load_run(run, model=model)
    names = classifier.class_names
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    for first in range(0, len(images), _BATCH):
        part = list(images[first : first + _BATCH])
        ids = [str(path) for path in part]
        pixels, skipped = decode_all(ids, part, classifier.encoder.info.preprocessing, skip_bad=True, progress=False)
        bad += skipped.values()
        if len(skipped) == len(part):
            continue
        with torch.no_grad():
            best = classifier(pixels.float() / 255).softmax(dim=-1).topk(min(top, len(names)))
        read = [id_ for index, id_ in enumerate(ids) if index not in skipped]
        for name, values, indices in zip(read, best.values.tolist(), best.indices.tolist(), strict=True):
            classes = [{"class": names[i], "probability": value} for value, i in zip(values, indices, strict=True)]
            rows.append({"image": name, "classes": classes})
    return rows, bad
