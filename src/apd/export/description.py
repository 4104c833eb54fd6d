"""What a program must know of an export: how images are made ready, and what the logits stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apd.export.base import Source
from apd.models.sources import split_tower
from apd.util.versions import __version__


def temperature(source: Source) -> float:
    """What logits are divided by before the softmax; 1 where the run's probabilities are not calibrated."""
    known = source.run.calibration
    return 1.0 if known is None else known.temperature


def public_name(model: str) -> str:
    """Name a CLIP model without the folders above it, which say nothing on another machine.

    >>> public_name("/home/me/models/clip"), public_name("openai/clip-vit-base-patch32")
    ('clip', 'openai/clip-vit-base-patch32')
    >>> public_name("openai/clip-vit-base-patch32+/home/me/fare.pt")
    'openai/clip-vit-base-patch32+fare.pt'
    """
    if tower := split_tower(model):
        return "+".join(map(public_name, map(str, tower)))
    return Path(model).name if Path(model).is_absolute() else model


def describe(source: Source, form: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Write down, as JSON values, all that is needed to use an exported model.

    Args:
        source: what was exported.
        form: its form.
        facts: what the form and the check add.
    """
    classifier, settings, manifest = source.classifier, source.settings, source.run.manifest
    info = classifier.encoder.info
    how = info.preprocessing
    return {
        "form": form,
        "precision": settings.precision,
        "open_vocabulary": settings.open_vocabulary,
        "class_names": list(classifier.class_names),
        "input": {"name": "images", "shape": ["batch", 3, how.size, how.size], "type": "float32", "range": [0.0, 1.0]},
        "preprocessing": {
            "before": "turned as EXIF says, transparency on white, 16-bit grey scaled to 8 bits, RGB",
            "resize": how.resize,
            "size": how.size,
            "mode": how.mode,
            "interpolation": how.interpolation,
            "mean": list(how.mean),
            "std": list(how.std),
            "normalised_inside": True,
        },
        "output": {"name": "logits", "shape": ["batch", len(classifier.class_names)]},
        "logit_scale": info.logit_scale,
        "logit_bias": info.logit_bias,
        "temperature": temperature(source),
        "model": {
            "source": public_name(manifest["model"]["source"]),
            "weights_sha256": manifest["model"]["weights_sha256"],
        },
        "prompts_sha256": manifest["prompts_sha256"],
        "apd": __version__,
        **facts,
    }
