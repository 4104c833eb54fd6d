"""Examples: images of the run's own data, to try before one has a file at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from apd.data.dataset import Dataset, in_turn
from apd.data.decode import open_image, to_rgb
from apd.data.unreadable import Source
from apd.errors import InputError
from apd.runs.folder import Run
from apd.util.files import AnyPath
from apd.util.seeds import shuffled
from apd.util.text import one_line

COUNT = 12
_LARGEST = 1024
"""Longer side of an example, in pixels: larger ones are made smaller for the page."""


@dataclass(frozen=True)
class Examples:
    """Image files of the run's data.

    Args:
        files: with the class they are labelled with (empty if they have no label).
        why_none: a sentence on why there are none; empty if there are some.
    """

    files: tuple[tuple[Path, str], ...] = ()
    why_none: str = ""


def find_examples(run: AnyPath, folder: Path, count: int = COUNT) -> Examples:
    """Write images of a run's test split (of the unlabelled ones if it has none) to a folder.

    Classes take turns; within a class the run's seed draws. Images that cannot be read are passed over.

    Args:
        run: the run folder.
        folder: where to write them.
        count: how many.
    """
    config = Run.open(run).config
    try:
        data = config.data.load(config.train.seed)
    except (InputError, OSError) as error:
        return Examples(why_none=f"The run's images are not here: {one_line(error, 200)}")
    images = data.test if len(data.test) else data.unlabelled
    files: list[tuple[Path, str]] = []
    for index in in_turn(shuffled(images.ids, config.train.seed, "examples"), images.labels.tolist()):
        file = folder / f"example-{len(files):02d}.png"
        if _write(images.sources[index], file):
            files.append((file, _name(data, int(images.labels[index]))))
        if len(files) == count:
            break
    return Examples(tuple(files), "" if files else f"{data.name} has no images that can be shown.")


def _name(data: Dataset, label: int) -> str:
    return data.class_names[label] if label >= 0 else ""


def _write(source: Source, file: Path) -> bool:
    try:
        with open_image(source) if isinstance(source, Path) else source() as image:
            shown = to_rgb(image)
            shown.thumbnail((_LARGEST, _LARGEST))
            shown.save(file, "PNG")
    except Exception:  # Pillow's decoders raise nearly everything for a broken file
        return False
    return True
