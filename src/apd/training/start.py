"""Training from Python, and what it shares with the command line."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apd.data import Dataset
from apd.data.unreadable import how_to_convert
from apd.models import DualEncoder, load_clip
from apd.runs.config import RunConfig, validate
from apd.runs.folder import Run, check_output
from apd.runs.load import describe_encoder
from apd.util.processes import is_first_process
from apd.util.text import printable
from apd.util.versions import versions

if TYPE_CHECKING:
    from apd.training.batches import Images


def train(
    clip: DualEncoder,
    data: Dataset,
    *,
    method: str | Mapping[str, Any] = "apd",
    eps: str | float = "1/255",
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    skip_bad_images: bool = False,
    **settings: Any,
) -> Run:
    """Learn prompts that make a CLIP robust on this data.

    Args:
        clip: from `apd.load_clip`.
        data: from `apd.load_data`.
        method: a name, or a mapping ``{"name": "apd", "teacher": "online", …}`` with the method's own settings.
        eps: training budget in [0,1] pixel units, as ``1/255`` or a float.
        output: run folder; None for a new temporary folder.
        resume: go on with an unfinished run in ``output``.
        overwrite: replace a run in ``output``.
        skip_bad_images: go on without images that cannot be read, and count them; no others are drawn in their place.
        settings: everything else of the section ``train``, such as ``epochs=20`` or ``optimizer={"lr": 0.01}``.

    Returns:
        The finished run.

    Raises:
        InputError: an unknown name, a value out of range, an output that cannot be used.

    Example:
        >>> import apd
        >>> clip, data = apd.load_clip("glyphs"), apd.load_data("digits", shots=1)
        >>> run = apd.train(clip, data, method="advvlp", eps="1/255", epochs=1)  # doctest: +SKIP
    """
    skipped = skip_bad_images or data.settings.skip_bad_images
    section = {**data.settings.model_dump(), "templates": data.templates, "skip_bad_images": skipped}
    raw = {"model": clip.info.source, "data": section, "method": method, "train": {"eps": eps, **settings}}
    config = validate(raw)
    if output is not None and is_first_process():
        check_output(output, resume=resume, overwrite=overwrite)
    images = read_images(clip, data, config)
    return start(clip, data, images, config, output, resume=resume, overwrite=overwrite)


def read_images(clip: DualEncoder, data: Dataset, config: RunConfig) -> Images:
    """Training and validation images; what is left out of them is told on standard error.

    Raises:
        InputError: no training images; images that cannot be read and are not to be left out.
    """
    from apd.training.batches import decode

    if is_first_process() and data.shortage():
        print(printable(data.shortage()), file=sys.stderr)
    images = decode(clip, data, config.data.skip_bad_images, show=is_first_process())
    train, val = images.train, images.val
    if is_first_process() and (train.skipped or val.skipped):
        print(
            f"Left out: {len(train.skipped)} of {len(data.train)} training images and {len(val.skipped)} of "
            f"{len(data.val)} validation images, which cannot be read; no others are drawn in their place."
            f"{how_to_convert([*train.skipped, *val.skipped])}",
            file=sys.stderr,
        )
    return images


def start(
    clip: DualEncoder,
    data: Dataset,
    images: Images,
    config: RunConfig,
    output: str | Path | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    """Make or reopen the run folder and train in it; a run that is finished already is returned as it is."""
    from apd.training.loop import train as train_loop

    run = Run.create(
        output if output is not None else tempfile.mkdtemp(prefix="apd-"),
        config,
        describe(clip, data, images, config),
        resume=resume,
        overwrite=overwrite,
        writer=is_first_process(),
    )
    return run if run.finished else train_loop(clip, data, images, config, run)


def describe(clip: DualEncoder, data: Dataset, images: Images, config: RunConfig) -> dict[str, Any]:
    """The circumstances of a run, for its manifest; the counts and the hash are of the images that could be read."""
    ids = "\n".join([*images.train.ids, "", *images.val.ids])
    settings = config.method.settings
    others = {name: source for name in settings.models if (source := getattr(settings, name)) is not None}
    return {
        "model": describe_encoder(clip.info),
        "teachers": {name: describe_encoder(load_clip(source).info) for name, source in others.items()},
        "data": {
            "name": data.name,
            "source": data.source,
            "description": data.description,
            "train_images": len(images.train),
            "validation_images": len(images.val),
            "ids_sha256": hashlib.sha256(ids.encode(errors="surrogateescape")).hexdigest(),
        },
        "left_out": {
            "train_images": len(images.train.skipped),
            "validation_images": len(images.val.skipped),
            "replaced": False,
            "ids": [*images.train.skipped, *images.val.skipped],
        },
        "class_names": list(data.class_names),
        "templates": list(data.templates),
        "prompts": config.method.settings.prompts.model_dump(mode="json"),
        "seeds": {"train": config.train.seed, "shots": data.settings.seed},
        "versions": versions(),
    }
