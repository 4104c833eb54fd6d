"""Training from Python, and what it shares with the command line."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apd.clip import DualEncoder, load_clip
from apd.config import RunConfig, validate
from apd.data import Dataset
from apd.loading import describe_encoder
from apd.run import Run
from apd.versions import versions


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
        skip_bad_images: go on without images that cannot be read, and count them.
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
    section = {
        "source": data.source,
        "shots": "all" if data.shots is None else data.shots,
        "seed": data.seed,
        "templates": data.templates,
        "classes": data.which,
        "columns": data.columns,
        "skip_bad_images": skip_bad_images,
    }
    raw = {"model": clip.info.source, "data": section, "method": method, "train": {"eps": eps, **settings}}
    return start(clip, data, validate(raw), output, resume=resume, overwrite=overwrite)


def start(
    clip: DualEncoder,
    data: Dataset,
    config: RunConfig,
    output: str | Path | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    """Make or reopen the run folder and train in it; a run that is finished already is returned as it is."""
    from apd.training.loop import train as train_loop

    data.check_trainable()
    run = Run.create(
        output if output is not None else tempfile.mkdtemp(prefix="apd-"),
        config,
        describe(clip, data, config),
        resume=resume,
        overwrite=overwrite,
        writer=is_first_process(),
    )
    return run if run.finished else train_loop(clip, data, config, run)


def is_first_process() -> bool:
    """Whether this is the process that writes and talks; `accelerate launch` numbers its processes."""
    return os.environ.get("RANK", "0") == "0"


def describe(clip: DualEncoder, data: Dataset, config: RunConfig) -> dict[str, Any]:
    """The circumstances of a run, for its manifest."""
    ids = "\n".join([*data.train.ids, "", *data.val.ids])
    settings = config.method.settings
    others = {name: source for name in settings.models if (source := getattr(settings, name)) is not None}
    return {
        "model": describe_encoder(clip.info),
        "teachers": {name: describe_encoder(load_clip(source).info) for name, source in others.items()},
        "data": {
            "name": data.name,
            "source": data.source,
            "description": data.description,
            "train_images": len(data.train),
            "validation_images": len(data.val),
            "ids_sha256": hashlib.sha256(ids.encode(errors="surrogateescape")).hexdigest(),
        },
        "class_names": list(data.class_names),
        "templates": list(data.templates),
        "prompts": config.method.settings.prompts.model_dump(mode="json"),
        "seeds": {"train": config.train.seed, "shots": data.seed},
        "versions": versions(),
    }
