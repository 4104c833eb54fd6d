"""Finished runs with random prompts, to export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from apd.models import DualEncoder
from apd.models.prompts import Prompts
from apd.runs.config import load_config
from apd.runs.folder import Run
from apd.runs.load import describe_encoder
from apd.util.versions import versions

from .runs import NAMES, TEMPLATES

Make = Callable[..., Path]


def random_run(place: Path, encoder: DualEncoder, prompts: dict[str, Any], data: str = "colours") -> Path:
    """A run folder whose prompts have not been trained."""
    flags = {"model": encoder.info.source, "data.source": data, "method.name": "advvlp"}
    config = load_config(flags={**flags, **{f"method.prompts.{name}": value for name, value in prompts.items()}})
    spec = config.method.settings.prompts
    manifest = {
        "model": describe_encoder(encoder.info),
        "data": {"name": "colours"},
        "class_names": NAMES,
        "templates": TEMPLATES,
        "prompts": spec.model_dump(mode="json"),
        "seeds": {"train": 0},
        "versions": versions(),
    }
    learned = Prompts.initial(spec, encoder, words="", seed=3, n_classes=len(NAMES))  # so that contexts differ
    for strip in getattr(learned, "strips", []):
        nn.init.uniform_(strip, -0.2, 0.2)
    made = Run.create(place, config, manifest)
    made.save_prompts(learned.state_dict())
    made.finish({"val_clean": 90.0})
    return made.path
