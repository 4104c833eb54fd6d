"""Whether a run has learned from the images that it is judged on, which then say nothing about new images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from apd.data import Dataset, same_source
from apd.data.copies import SPLITS, example, find_copies
from apd.data.dataset import IN_MEMORY, ImageSet
from apd.data.load import load_unlabelled
from apd.data.settings import Split
from apd.data.sources.hub import table_files
from apd.data.sources.unlabelled import PREFIX
from apd.errors import ApdError, InputError
from apd.runs.differences import hash_of_ids
from apd.runs.draw import Draw, draws_of
from apd.runs.folder import Run
from apd.util.files import user_path
from apd.util.messages import get_logger, speaking
from apd.util.plugins import is_spec
from apd.util.text import printable

log = get_logger("apd.evaluation")

HUB = "hf:"
"""Stands before the source of images that are rows of tables, not files."""


def warn_of_learned(run: Run, data: Dataset, split: Split) -> None:
    """Warn of images that a run was trained on among those it is judged on.

    Args:
        run: the run.
        data: its own data, maybe drawn anew, or others, with all classes.
        split: the images that are judged.
    """
    known = _warn_of_unlabelled(run, data, split)
    if any(same_source(data.source, draw.data.source) for draw in draws_of(run)):
        _warn_of_own(run, data, split)
    elif not known:
        warn_of_copies(run, data, split)


def learned_unlabelled(draws: Sequence[Draw], source: str | None, images: ImageSet) -> int:
    """Count the images of a source that a run may have learned from as unlabelled images from elsewhere.

    Args:
        draws: the run's.
        source: the source.
        images: a split of that source.
    """
    taken: set[str] = set()
    for draw in draws:
        if source is not None and draw.elsewhere is not None and same_source(source, draw.elsewhere):
            taken |= {*load_unlabelled(draw.elsewhere, draw.data.columns).ids}
    return sum(f"{PREFIX}{id_}" in taken for id_ in images.ids)


def learned_of_own(run: Run, data: Dataset, images: ImageSet) -> list[str]:
    """List the images of a data set that a run has learned from, where it is the run's own, maybe drawn anew.

    Args:
        run: the run.
        data: the data set.
        images: a split of it.

    Raises:
        InputError: images that can no longer be drawn.
    """
    learned: set[str] = set()
    failed: list[InputError] = []
    for draw in draws_of(run):
        if same_source(data.source, draw.data.source):
            try:
                drawn = data if draw.data.source.startswith(IN_MEMORY) else draw.load()
            except InputError as error:  # of several, the others still tell
                failed.append(error)
                continue
            learned |= {*_of(draw, drawn)}
    if failed and not learned:
        raise failed[0]
    return [id_ for id_ in images.ids if id_ in learned]


def _of(draw: Draw, drawn: Dataset) -> list[str]:
    """The images that were learned from, as the data name them; none where they are not those that are drawn now."""
    if draw.data.source.startswith(IN_MEMORY):
        return [*drawn.train.ids] if draw.ids_sha256 == hash_of_ids(drawn.train.ids, drawn.val.ids) else []
    learned = [*drawn.train.ids, *drawn.unlabelled.ids] if draw.is_that_of(drawn) else []
    return [id_.removeprefix(PREFIX) for id_ in learned]


def _warn_of_unlabelled(run: Run, data: Dataset, split: Split) -> bool:
    """Warn where a run may have learned from the images without their labels, and say whether it may."""
    judged: tuple[Split, ...] = ("train",) if split == "train" else ("val", "test")
    found = {name: learned_unlabelled(draws_of(run), data.source, data.split(name)) for name in judged}
    if any(found.values()):
        told = " and ".join(f"{found[name]} of {len(data.split(name))} {SPLITS[name]} images" for name in judged)
        log.warning(
            f"{run.path} may have learned from {told} of {data.name} without their labels (its data.unlabelled); they are "
            "not unseen images."
        )
    return any(found.values())


def _warn_of_own(run: Run, data: Dataset, split: Split) -> None:
    """Warn of the images of a split, of the run's own data, that it was trained on."""
    images = data.split(split)
    try:
        seen = learned_of_own(run, data, images)
    except InputError:  # the run's draw can no longer be made
        return
    if not seen:
        return
    told = (
        f"{run.path} was trained on {len(seen)} of the {len(images)} {SPLITS[split]} images of {printable(data.name)}"
    )
    if split == "train":
        way_out = (
            "accuracy on them says nothing about new images; leave --split away (Python: split=) for the test images"
        )
    elif data.source.startswith(IN_MEMORY) or "averaged" in run.manifest:
        way_out = "accuracy on them says nothing about new images; give images that it has not seen"
    else:
        way_out = f"data={data.source!r} stands for those that it has not seen"
    log.warning(f"{told} as they are drawn here ({printable(seen[0])} is one); {way_out}.")


def warn_of_copies(run: Run, data: Dataset, split: Split) -> None:
    """Warn of images of other data whose files are those that a run has learned from, or copies of them.

    Nothing is told where the run's own images are no longer where they were.
    """
    images = data.split(split)
    if not any(isinstance(source, Path) for source in images.sources):
        return
    copies = find_copies(_learned_files(run), images)
    if copies:
        log.warning(
            f"{run.path} was trained or validated on {len(copies)} of the {len(images)} {SPLITS[split]} images of "
            f"{printable(data.name)} ({example(copies)}): they say nothing about new images. Give images that it has not seen."
        )


def _learned_files(run: Run) -> list[ImageSet]:
    """The images that a run has learned from, where they are files that are still there."""
    found: list[ImageSet] = []
    for draw in draws_of(run):
        with speaking(quiet=True), suppress(ApdError, OSError):
            if _may_be_files(draw.data.source) and draw.is_that_of(drawn := draw.load()):
                found += [drawn.train, drawn.val, drawn.unlabelled]
        with speaking(quiet=True), suppress(ApdError, OSError):
            if draw.elsewhere is not None and _may_be_files(draw.elsewhere):
                found.append(load_unlabelled(draw.elsewhere, draw.data.columns))
    return found


def _may_be_files(source: str) -> bool:
    """Whether images of a source may be files: not those of the hub, of Python, of code, or in tables."""
    return not source.startswith((IN_MEMORY, HUB)) and not is_spec(source) and not table_files(user_path(source))
