"""From image files to named classes with probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from apd.data import ImageSet
from apd.errors import InputError
from apd.loading import load_run

_BATCH = 64


def predict_files(
    run: str | Path, images: Sequence[Path], *, top: int = 3, model: str | None = None, skip_bad: bool = False
) -> list[dict[str, Any]]:
    """The most probable classes of image files, images turned and resized as in training.

    Args:
        run: run folder.
        images: image files.
        top: how many classes.
        model: where the CLIP is now, if it has moved.
        skip_bad: leave out files that cannot be read.

    Returns:
        One ``{"image": path, "classes": [{"class": name, "probability": p}, …]}`` a file, most probable class first.

    Raises:
        InputError: no run, a missing file, a folder, or an image that cannot be read.
    """
    for path in images:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name its image files, as in {path}/*.jpg.")
        if not path.is_file():
            raise InputError(f"There is no file {path}.")
    classifier = load_run(run, model=model)
    names = classifier.class_names
    rows = []
    for first in range(0, len(images), _BATCH):
        part = list(images[first : first + _BATCH])
        unlabelled = torch.zeros(len(part), dtype=torch.int64)
        files = ImageSet(tuple(map(str, part)), unlabelled, tuple(part))
        decoded = files.decode(classifier.encoder.info.preprocessing, skip_bad=skip_bad)
        with torch.no_grad():
            best = classifier(decoded.pixels()).softmax(dim=-1).topk(min(top, len(names)))
        for name, values, indices in zip(decoded.ids, best.values.tolist(), best.indices.tolist(), strict=True):
            classes = [{"class": names[i], "probability": value} for value, i in zip(values, indices, strict=True)]
            rows.append({"image": name, "classes": classes})
    return rows
