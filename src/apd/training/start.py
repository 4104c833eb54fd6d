"""The one way to start a training: `start_training`, and `train` with the arguments of a Python user."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch

from apd.attacks import TrainingAttack
from apd.attacks.training import attack_section
from apd.data import Dataset
from apd.data.copies import about_copies
from apd.data.dataset import check_dataset
from apd.data.load import BUILT_IN
from apd.data.settings import REST
from apd.data.unreadable import how_to_convert
from apd.errors import InputError
from apd.methods import METHODS, Method
from apd.models import DualEncoder, load_clip
from apd.runs.config import RunConfig, validate, with_class_contexts
from apd.runs.differences import hash_of_ids, hash_of_labels
from apd.runs.folder import Run
from apd.runs.load import describe_encoder, hold_teacher
from apd.runs.output import check_output
from apd.settings.options import TrainOptions
from apd.util.files import user_path
from apd.util.messages import get_logger, speaking
from apd.util.processes import is_alone, is_first_process
from apd.util.temporary import folder_until_exit
from apd.util.text import quoted
from apd.util.trust import trust
from apd.util.versions import versions

if TYPE_CHECKING:
    from apd.training.batches import TrainingImages

log = get_logger("apd.training")


def train(
    clip: DualEncoder | type[DualEncoder] | str | Path,
    data: Dataset,
    *,
    method: str | Mapping[str, Any] | type[Method] = "apd",
    attack: str | Mapping[str, Any] | TrainingAttack | type[TrainingAttack] | None = None,
    eps: str | float = "1/255",
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    skip_bad_images: bool = False,
    quiet: bool = False,
    **settings: Unpack[TrainOptions],
) -> Run:
    """Learn prompts that make a CLIP model robust on this data.

    Args:
        clip: from `apd.load_clip`, or what it takes.
        data: from `apd.load_data`, `apd.Dataset.from_tensors` or `apd.Dataset.from_torch`.
        method: a name, a class derived from `apd.methods.Method`, or a mapping ``{"name": "apd", "teacher": "online", …}``
            with the method's own settings, whose name may be a class too.
        attack: of the training images: a name (``"pgd"``), an `apd.attacks.TrainingAttack`, or a mapping as in the section
            ``train.attack``, whose ``loss`` may be a function; None for the default.
        eps: training budget in [0,1] pixel units, as ``1/255`` or a float.
        output: run folder; None for a temporary folder that is removed when Python exits.
        resume: continue an unfinished run in ``output``.
        overwrite: replace a run in ``output``.
        skip_bad_images: continue without images that cannot be read, and count them; no others are drawn in their place.
        quiet: show nothing.
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
    trust(method, attack, settings)
    check_dataset(data)
    clip = load_clip(clip)
    skipped = skip_bad_images or data.settings.skip_bad_images
    section = {**data.settings.model_dump(), "templates": data.templates, "skip_bad_images": skipped}
    training = {"eps": eps, **({} if attack is None else {"attack": attack_section(attack)}), **settings}
    raw = {"model": clip.info.source, "data": section, "method": _method_section(method), "train": training}
    config = validate(raw)
    return start_training(config, clip=clip, data=data, output=output, resume=resume, overwrite=overwrite, quiet=quiet)


def _method_section(method: str | Mapping[str, Any] | type[Method]) -> str | Mapping[str, Any]:
    """The section ``method`` with the name of a class in place of the class."""
    if isinstance(method, str):
        return method
    if isinstance(method, type):
        return {"name": METHODS.name_of(method)}
    name = method.get("name")
    return {**method, "name": METHODS.name_of(name)} if isinstance(name, type) else method


def start_training(
    config: RunConfig,
    *,
    clip: DualEncoder | None = None,
    data: Dataset | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    on_data: Callable[[Dataset], None] | None = None,
) -> Run:
    """Train as ``config`` says: the one way that Python, the command line and the bench start or resume a training.

    What is cheap to check comes first: the output folder, then the data, and only then the CLIP and the images.

    Args:
        config: settings.
        clip: the CLIP of ``config.model``, if it is loaded already.
        data: the data set of ``config.data``, if it is loaded already.
        output: run folder; None for a temporary folder that is removed when Python exits.
        resume: continue an unfinished run in ``output``; a finished one is returned unchanged.
        overwrite: replace a run in ``output``.
        quiet: show nothing.
        on_data: called with the data set before the CLIP and the images are read.

    Returns:
        The finished run.

    Raises:
        InputError: an output that cannot be used, data without training images, an image that cannot be read, a CLIP
            that cannot be loaded.
    """
    # Not at the top: accelerate takes a second that bad settings need not wait for.
    from apd.training.loop import train as train_loop

    first = is_first_process()
    with speaking(quiet or not first):
        if first and output is not None:
            check_output(output, resume=resume, overwrite=overwrite)
            if not resume:
                for source in (config.data.source, config.data.unlabelled):
                    _refuse_inside(user_path(output), source)
        clip, data, images = _read(
            config, clip, data, on_data, user_path(output) if resume and output is not None else None
        )
        _check_float32(clip)
        decided = with_class_contexts(config, lambda: data)
        # Held until the end of training, so that a method that shares them loads none a second time.
        others = config.method.other_models()
        held = {name: hold_teacher(source, clip) for name, source in others.items()}
        teachers = {name: about for name, (_, about) in held.items()}
        place = _until_exit() if output is None else output
        manifest = describe(clip, data, images, decided, teachers)
        run = Run.create(place, config, manifest, resume=resume, overwrite=overwrite, writer=first)
        return train_loop(clip, data, images, decided, run)


def _check_float32(clip: DualEncoder) -> None:
    """Refuse weights of another type: the run would be of them, and no command loads or attacks others than float32.

    Raises:
        InputError: naming their type.
    """
    others = {str(p.dtype) for p in clip.parameters() if p.is_floating_point() and p.dtype != torch.float32}
    if others:
        raise InputError(
            f"The weights of {clip.info.source} are {', '.join(sorted(others))}: load them in float32 (dtype=), in "
            "which attacks are reported; precision='bf16' trains in half precision."
        )


def _until_exit() -> Path:
    """Make the folder of a run that is given none.

    Raises:
        InputError: several processes, each of which would make one of its own.
    """
    if not is_alone():
        raise InputError("Several processes train one run, which needs a folder: give output=.")
    place = folder_until_exit("apd-")
    log.info(f"The run is in {place}, which is removed when Python exits; output= keeps it elsewhere.")
    return place


def _refuse_inside(output: Path, source: str | None) -> None:
    """Refuse a run folder inside the folder of images, where its files would be read as classes and images."""
    if source is None or source == REST:
        return
    data = user_path(source)
    if source not in BUILT_IN and data.is_dir() and output.resolve().is_relative_to(data.resolve()):
        raise InputError(f"--output {output} lies in the data folder {data}: choose a folder outside of it.")


def _read(
    config: RunConfig,
    clip: DualEncoder | None,
    data: Dataset | None,
    on_data: Callable[[Dataset], None] | None,
    resumed: Path | None,
) -> tuple[DualEncoder, Dataset, TrainingImages]:
    """Load what is not loaded yet, the data first, and decode the images; ``resumed`` is the run that goes on, if one does."""
    from apd.training.batches import decode

    with _or_moved(config.data.source, "DATA", resumed):
        data = config.data.load(config.train.seed) if data is None else data
    data.check_trainable()
    if on_data is not None:
        on_data(data)
    with _or_moved(config.model, "--model MODEL", resumed):
        clip = load_clip(config.model) if clip is None else clip
    if data.shortage():
        log.warning(data.shortage())
    for copies in (about_copies(data), about_copies(data, "val")):
        if copies:
            log.warning(copies)
    if doubt := config.train.threat.doubt():
        log.warning(doubt)
    images = decode(clip, data, config.data.skip_bad_images, show=True)
    _tell_skipped(data, images)
    return clip, data, images


@contextmanager
def _or_moved(place: str, how: str, run: Path | None) -> Iterator[None]:
    """Add to an error about something that is not where a resumed run names it how to name another place."""
    try:
        yield
    except InputError as error:
        if run is None or user_path(place).exists():
            raise
        way_out = f"apd train {how} --output {quoted(run)} --resume"
        raise InputError(
            f"{error} {run} was started with it; if it has moved, say where it is now: {way_out}"
        ) from error


def _tell_skipped(data: Dataset, images: TrainingImages) -> None:
    """Say how many images could not be read."""
    skipped = images.skipped
    if any(skipped.values()):
        splits = {"training": data.train, "validation": data.val, "unlabelled": data.unlabelled}
        counts = [
            f"{len(skipped[name])} of {len(split)} {name} images" for name, split in splits.items() if skipped[name]
        ]
        log.warning(
            f"Left out: {', '.join(counts)}, which cannot be read; no others are drawn in their place."
            f"{how_to_convert(id_ for ids in skipped.values() for id_ in ids)}"
        )


def describe(
    clip: DualEncoder, data: Dataset, images: TrainingImages, config: RunConfig, teachers: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe the circumstances of a run for its manifest.

    Args:
        clip: the CLIP that prompts are trained for.
        data: named classes.
        images: decoded; counts and hash are those of the images that could be read.
        config: settings.
        teachers: what is kept of the other CLIPs of the method, by the setting that names them.
    """
    unlabelled = None if images.unlabelled is None else images.unlabelled.ids
    return {
        "model": describe_encoder(clip.info),
        "teachers": dict(teachers),
        "data": {
            "name": data.name,
            "source": data.source,
            "description": data.description,
            "train_images": len(images.train),
            "validation_images": len(images.val),
            **_about_unlabelled(data, images),
            "ids_sha256": hash_of_ids(images.train.ids, images.val.ids, unlabelled),
            **({"labels_sha256": _labels(images)} if len(images.train) else {}),
        },
        "left_out": {
            "train_images": len(images.train.skipped),
            "validation_images": len(images.val.skipped),
            **({"unlabelled_images": len(images.skipped["unlabelled"])} if len(data.unlabelled) else {}),
            "replaced": False,
            "ids": [id_ for ids in images.skipped.values() for id_ in ids],
        },
        "class_names": list(data.class_names),
        "templates": list(data.templates),
        "prompts": config.method.settings.prompts.model_dump(mode="json"),
        "seeds": {"train": config.train.seed, "shots": data.settings.seed},
        "versions": versions(),
    }


def _labels(images: TrainingImages) -> str:
    return hash_of_labels(images.train.labels.tolist(), images.val.labels.tolist())


def _about_unlabelled(data: Dataset, images: TrainingImages) -> dict[str, Any]:
    """How many unlabelled images there are and where they come from; empty where there are none."""
    if images.unlabelled is None:
        return {}
    return {
        "unlabelled_images": len(images.unlabelled),
        "unlabelled_source": data.source if data.settings.unlabelled is None else data.settings.unlabelled,
    }
