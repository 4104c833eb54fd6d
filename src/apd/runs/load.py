"""From a run folder to a classifier, on the very CLIP it was trained on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from apd.errors import InputError
from apd.models import DualEncoder, EncoderInfo, load_clip, names_code
from apd.models.classifier import PromptedCLIP
from apd.models.prompts import Prompts, PromptSpec
from apd.models.shared import share_classifier, shared_clip
from apd.models.sources import absolute
from apd.runs.folder import Run
from apd.util.files import AnyPath, user_path
from apd.util.messages import get_logger
from apd.util.tensors import sha256_of_text
from apd.util.text import short
from apd.util.trust import trust

log = get_logger("apd.runs")


def load_run(
    path: AnyPath,
    *,
    device: str | torch.device = "cpu",
    model: str | None = None,
    encoder: DualEncoder | None = None,
) -> PromptedCLIP:
    """Load the classifier of a finished run.

    Args:
        path: the run folder.
        device: where to put it.
        model: where the CLIP is now, if it has moved since.
        encoder: the CLIP, if it is loaded already; it stays on its device, and ``device`` and ``model`` are not used.

    Raises:
        InputError: no finished run, or a CLIP model, tokenizer or preprocessing that is not the one it was trained on.

    Example:
        >>> import apd, torch
        >>> classifier = apd.load_run("runs/demo/apd")  # doctest: +SKIP
        >>> classifier(torch.rand(1, 3, 32, 32)).softmax(-1)  # doctest: +SKIP
    """
    run = Run.open(path)
    _warn_of_changed_settings(run)
    recorded = run.manifest["model"]
    if encoder is None:
        trust(model)
        revision = None if model else recorded["revision"]
        try:
            encoder = load_clip(model or recorded["source"], revision=revision, device=device)
        except OSError as error:  # a name too long for the file system, a loop of links
            what = short(model or recorded["source"])
            raise InputError(
                f"The CLIP model {what} of {path} cannot be opened ({error.strerror or error})."
            ) from error
        except InputError as error:
            if model is not None or not _gone(recorded["source"]):
                raise
            raise InputError(
                f"{error} {path} was trained on it; if it has moved, say where it is now with --model (Python: model=...)."
            ) from error
    found = describe_encoder(encoder.info)
    if key := _differing(recorded, encoder.info):
        raise InputError(
            f"The {key} of {found['source']} is {found[key]}, but {path} was trained on {recorded[key]}; "
            "give the CLIP it was trained on as model (--model), or train again."
        )
    spec = PromptSpec.recorded(run.manifest["prompts"], str(run.path / "run.json"))
    prompts = Prompts.from_tensors(spec, encoder.info, run.load_prompts())
    prompts.requires_grad_(False)
    learned = prompts.to(encoder.device) if prompts.state_dict() else None
    return PromptedCLIP(encoder, learned, run.manifest["class_names"], run.manifest["templates"]).eval()


def _warn_of_changed_settings(run: Run) -> None:
    """Warn where ``config.yaml``, from which the budget and the data of an evaluation come, is not as training left it."""
    file, stated = run.path / "config.yaml", run.manifest.get("config_sha256")
    if stated is None or not os.access(file, os.R_OK):
        return
    if sha256_of_text(file) != stated:
        log.warning(
            f"{file} has changed since training: its settings may not be those that the prompts were trained with, and what "
            "is evaluated by them may have another eps or other data."
        )


def _gone(source: str) -> bool:
    """Whether a recorded source names a folder or a file, as a model or its tower, that is not there."""
    return any(Path(place).is_absolute() and not Path(place).exists() for place in source.split("+"))


def is_run(source: str | Path) -> bool:
    """Whether a source is a run folder."""
    return (user_path(source) / "run.json").is_file()


def hold_teacher(source: str, student: DualEncoder) -> tuple[nn.Module, dict[str, Any]]:
    """Load what a method's setting names as teacher, a CLIP model or a finished run, where methods find it.

    Args:
        source: any source of a CLIP model, or a run folder.
        student: the CLIP of the training; a run on the same one shares it.

    Returns:
        What must be held as long as methods need it, and what the manifest keeps.

    Raises:
        InputError: see `apd.load_clip` and `load_run`.
    """
    if not is_run(source):
        encoder = shared_clip(source, device=student.device)
        return encoder, describe_encoder(encoder.info)
    run = Run.open(source)
    recorded = run.manifest["model"]
    encoder = student if is_recorded(recorded, student.info) else shared_clip(recorded["source"], device=student.device)
    about = {"run": str(user_path(source).resolve()), "prompts_sha256": run.manifest["prompts_sha256"]}
    return share_classifier(source, load_run(source, encoder=encoder)), {**describe_encoder(encoder.info), **about}


SAME_MODEL = ("weights_sha256", "tokenizer_sha256", "preprocessing", "architecture")
"""What of a CLIP model decides its answers, as the manifest keeps it."""


def is_recorded(record: Mapping[str, Any], info: EncoderInfo) -> bool:
    """Whether a CLIP model gives the answers of the one that a manifest records."""
    return _differing(record, info) is None


def _differing(record: Mapping[str, Any], info: EncoderInfo) -> str | None:
    found = describe_encoder(info)
    # Older runs do not state all of it.
    return next((key for key in SAME_MODEL if record.get(key, found[key]) != found[key]), None)


def describe_encoder(info: EncoderInfo) -> dict[str, Any]:
    """An `apd.models.EncoderInfo` as the manifest keeps it: as JSON, a local folder by its absolute path."""
    record = cast(dict[str, Any], json.loads(json.dumps(asdict(info))))
    # What is built in or made by code is not the folder of that name that happens to be here.
    if info.source and not names_code(info.source):
        record["source"] = absolute(info.source)
    return record
