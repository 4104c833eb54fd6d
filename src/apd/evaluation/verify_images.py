"""Whether adversarial images that a run keeps are what its index says: inside the ball, of these pictures, so classified."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apd.attacks.threat import ThreatModel, parse_eps
from apd.errors import InputError
from apd.evaluation.findings import Finding
from apd.evaluation.frozen import Subject
from apd.evaluation.images import LEVELS, read_image
from apd.evaluation.verify_files import Claim
from apd.models.classifier import PromptedCLIP
from apd.util.files import plain_file, read_json
from apd.util.text import one_line, printable

LARGEST = 100_000_000
"""Bytes of an index or an image that is read."""
BATCH = 64
_PLACE = re.compile(r"(adversarial|clean)/[A-Za-z0-9-]+\.png")


def check_kept(images: Path, claim: Claim, classifier: PromptedCLIP) -> Iterator[Finding]:
    """Look at all adversarial images that an evaluation has kept, each at the cost of a prediction; nothing where it kept none.

    Args:
        images: ``RUN/images``.
        claim: the evaluation.
        classifier: for the classes of the evaluation.
    """
    for index in sorted(images.glob("*/index.json")):
        try:
            record = read_json(plain_file(index, LARGEST), "remove it")
            if not _belongs(record["about"], claim):
                continue
            rows = record["images"]
            batches = (rows[i : i + BATCH] for i in range(0, len(rows), BATCH))
            problem = next(
                filter(None, (_problem(index.parent, record, some, claim, classifier) for some in batches)), None
            )
        except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            problem = f"cannot be read: {one_line(error, 200)}"
        about = f"{printable(index.parent.name)}: "
        yield Finding(
            "kept images", problem is None, about + (problem or "images are as the index says"), claim.file.name
        )


def _belongs(about: Mapping[str, Any], claim: Claim) -> bool:
    result = claim.result
    return (
        about["attack"] in result.attacks
        and (about["norm"], about["seed"]) == (result.norm, str(result.seed))
        and about["model"] == result.classifier
        and about.get("corruption") == result.corruption
    )


def _read(folder: Path, name: str) -> Tensor:
    if not _PLACE.fullmatch(name):
        raise InputError(f"the index names a file elsewhere: {name}")
    return read_image(plain_file(folder / name, LARGEST))


def _problem(
    folder: Path, record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], claim: Claim, classifier: PromptedCLIP
) -> str | None:
    """Say what is wrong with some rows of an index; None where nothing is."""
    threat = ThreatModel(parse_eps(record["about"]["eps"], claim.result.norm), claim.result.norm)  # type: ignore[arg-type]
    found = torch.stack([_read(folder, row["file"]) for row in rows])
    clean = torch.stack([_read(folder, row["clean_file"]) for row in rows])
    known = {(id_, pixels) for id_, pixels, _ in claim.outcomes.keys}
    subject = Subject.of(classifier)
    with subject.fixed():
        predicted = subject.predict(found.to(subject.device)).tolist()
    outside = threat.distance(found.double(), clean.double()) > threat.eps * (1 + 1e-4) + 2 / LEVELS
    for row, original, far, guess in zip(rows, clean, outside.tolist(), predicted, strict=True):
        name = one_line(row["id"], 80)
        if far:
            return f"{name} is further than eps {threat.eps:g} from its clean image"
        if (row["id"], row["pixels"]) not in known or _fingerprint(original) != row["pixels"]:
            return f"the clean image of {name} is not the evaluated one"
        if claim.outcomes.class_names[guess] != row["predicted_adversarial"]:
            return f"{name} is classified as {printable(claim.outcomes.class_names[guess])} and not as the index says"
    return None


def _fingerprint(image: Tensor) -> str:
    """Fingerprint of an image (3,S,S) in [0,1] that came from 8 bits, as `Samples` makes it."""
    levels = (image.double() * 255).round().to(torch.uint8).contiguous()
    return hashlib.blake2b(levels.numpy().tobytes(), digest_size=8).hexdigest()
