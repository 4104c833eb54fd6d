"""What decides the outcome of a job, as hashes: of the content of CLIP models and images, wherever they lie, and of settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from apd.attacks import code_of
from apd.attacks.objectives import LOSSES
from apd.bench.loaded import encoder, encoder_info, whole
from apd.data import ImageSet
from apd.data.load import DATA, load_unlabelled
from apd.data.settings import REST, UNLABELLED, DataSettings
from apd.data.sources.hub import table_files
from apd.data.unreadable import Source
from apd.evaluation.surroundings import ZERO_SHOT
from apd.methods import find_method
from apd.methods.teachers import PARTS
from apd.runs.config import RunConfig
from apd.runs.folder import Run
from apd.runs.load import is_run
from apd.settings.train import TEACHER
from apd.util.code import code_hash, is_own_code
from apd.util.files import user_path
from apd.util.trust import is_spec


def digest(about: Mapping[str, Any]) -> str:
    """Hash settings and hashes to a short name."""
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_identity(source: str) -> tuple[str, ...]:
    """Hashes of a CLIP model, or of a run that stands for one."""
    if is_run(source):
        run = Run.open(source).manifest
        hashes = (run["model"]["weights_sha256"], run["model"]["tokenizer_sha256"], run["prompts_sha256"])
        return (*hashes, repr(run["model"]["preprocessing"]), repr(run["templates"]))
    info = encoder_info(source)
    code = (code_hash(encoder(source, "cpu")),) if is_spec(source) else ()
    return (info.weights_sha256, info.tokenizer_sha256, repr(info.preprocessing), *code)


def training_identity(config: RunConfig) -> dict[str, Any]:
    """What of a training decides its outcome: settings with their defaults, and other CLIPs by what they are."""
    found = config.model_dump(mode="json")
    others = {name: model_identity(source) for name, source in config.method.other_models().items()}
    by = (config.train.pseudo_labels or TEACHER) if _chooses_labeller(config) else None
    # The first default has no name in the ids of outcomes that are kept.
    train = {key: value for key, value in found["train"].items() if key not in ("device", "pseudo_labels")}
    train |= {"pseudo_labels": by} if by not in (None, "auto") else {}
    if by and "tuned" in PARTS[by] and config.method.settings.prompts.class_specific:
        train["pseudo_labels"] = (
            f"{by}, a context per class"  # before, tuned prompts that labelled images had one for all
        )
    extra = {name: value for name, value in found["data"].items() if name in UNLABELLED}
    if config.data.unlabelled not in (None, REST):
        extra["unlabelled"] = unlabelled_identity(config.data.unlabelled, config.data.columns)
    attack = config.train.attack
    used: list[Callable[..., Any]] = [find_method(config.method.name), attack.attack_class]
    used += [LOSSES.find(attack.loss)] if attack.loss != "method" else []
    if own := [code_hash(one) for one in used if is_own_code(one)]:
        extra["code"] = own
    return {"method": found["method"] | others, "train": train, "classes": config.data.classes, **extra}


def _chooses_labeller(config: RunConfig) -> bool:
    """Whether there are unlabelled images, a method that needs labels for them, and labelled images to choose the teacher by."""
    images = config.data
    return images.unlabelled is not None and images.shots != 0 and find_method(config.method.name).pseudo_labels


def attacks_identity(names: Sequence[str]) -> dict[str, Any]:
    """Hashes of what attacks are besides their names: code that is somebody's own, models that images are made on."""
    own = {name: code for name in names if (code := code_of(name)) is not None}
    sources = {name: model_identity(source) for name in names if (source := transferred_from(name)) is not None}
    return ({"code": own} if own else {}) | ({"sources": sources} if sources else {})


def transferred_from(attack: str) -> str | None:
    """The model or run that an attack's images are made on; None where that is zero-shot CLIP, or the model under attack."""
    kind, _, source = attack.partition(":")
    return source if kind == "transfer" and source != ZERO_SHOT else None


@cache
def data_identity(settings: DataSettings) -> str:
    """Hash class names, templates, and the ids and file sizes of all images, wherever they lie.

    Without unreadable images, or with another number of validation images, it is another data set; so it is with any
    other option that the content does not show.
    """
    data = whole(settings.model_copy(update={"validation": None, "skip_bad_images": False}))
    identity = _content((data.class_names, data.templates), data.train, data.val, data.test) + _tables(settings.source)
    if settings.validation is not None:
        identity += f" with {settings.validation} validation images a class"  # hashed: stays as it is
    if settings.skip_bad_images:
        identity += " without unreadable images"
    told = {
        "source",
        "shots",
        "seed",
        "classes",
        "templates",
        "validation",
        "skip_bad_images",
        *UNLABELLED,
        "memory_gb",
    }
    rest = settings.model_dump(exclude=told, exclude_defaults=True)
    return identity + _elsewhere(settings.source) + "".join(f" {name}={value}" for name, value in rest.items())


@cache
def unlabelled_identity(source: str, columns: tuple[str, str] | None) -> str:
    """Hash the ids and file sizes of all unlabelled images of a source, wherever it is."""
    return _content((), load_unlabelled(source, columns)) + _tables(source) + _elsewhere(source)


def _content(about: object, *parts: ImageSet) -> str:
    found = hashlib.sha256(repr(about).encode())
    for images in parts:
        for id_, label, source in zip(images.ids, images.labels.tolist(), images.sources, strict=True):
            found.update(f"{id_}\0{label}\0{_size(source)}\n".encode(errors="surrogateescape"))
    return found.hexdigest()


def _size(source: Source) -> int:
    """Bytes of an image's file; 0 for what is not a file, or is not there, which reading the images tells of."""
    try:
        return source.stat().st_size if isinstance(source, Path) else 0
    except OSError:
        return 0


def _elsewhere(source: str) -> str:
    """The name of images that are not files here, of which ids and labels are all that is seen: of the hub, or of code."""
    if source.startswith("hf:"):
        return f" from {source}"
    return f" from {source} {code_hash(DATA.find(source))}" if is_spec(source) else ""


def _tables(source: str) -> str:
    """Sizes of the files of a parquet or saved table, which holds the images itself; empty for anything else."""
    # `datasets` keeps what it has worked out beside a saved table.
    files = sorted(file for file in table_files(user_path(source)) if not Path(file).name.startswith("cache-"))
    sizes = [Path(file).stat().st_size for file in files]
    return f" in files of {sizes} bytes" if sizes else ""
