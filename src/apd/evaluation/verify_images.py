"""Whether adversarial images that a run keeps are what its index says: inside the ball, of these pictures, so classified."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apd.attacks import find
from apd.attacks.threat import ThreatModel, parse_eps
from apd.errors import InputError
from apd.evaluation.findings import Finding
from apd.evaluation.frozen import Subject
from apd.evaluation.images import LEVELS, read_image, read_index
from apd.evaluation.store import Key
from apd.evaluation.verify_files import Claim
from apd.models.classifier import PromptedCLIP
from apd.util.files import plain_file
from apd.util.text import one_line, printable

MOST_BYTES = 100_000_000
"""Bytes of an index or an image that is read."""
BATCH = 64
"""Images that are read and classified at a time."""
_PLACE = re.compile(r"(adversarial|clean)/[A-Za-z0-9-]+\.png")


def check_kept(images: Path, claim: Claim, classifier: PromptedCLIP) -> Iterator[Finding]:
    """Look at all adversarial images of an evaluation that are kept, each at the cost of a prediction; nothing where none are.

    Args:
        images: ``RUN/images``.
        claim: the evaluation.
        classifier: for the classes of the evaluation.
    """
    known = set(claim.outcomes.keys)
    for index in sorted(images.glob("*/index.json")):
        problem: str | None
        try:
            about, rows = _index(index)
            if not _belongs(about, claim):
                continue
            own = [row for key, row in rows.items() if key in known]
            batches = [own[i : i + BATCH] for i in range(0, len(own), BATCH)]
            found = (_problem(index.parent, about, some, claim, classifier) for some in batches)
            problem = next(filter(None, found), None) or _refuted(about["attack"], rows, claim)
        except _DAMAGED as error:
            problem = f"cannot be read: {one_line(error, 200)}"
        yield _finding(index, problem, claim.file.name)


def _refuted(attack: str, rows: Mapping[Key, Mapping[str, Any]], claim: Claim) -> str | None:
    """Say which image withstood the attack by the evaluation, though the kept one is misclassified; None for none.

    Storing may change the answer to an image, as its row then says; that of more than one, or of 2 %, is not believed.
    """
    stated = zip(claim.outcomes.keys, claim.outcomes.right(attack), strict=True)
    found = [rows[key] for key, right in stated if right and key in rows]
    fallen = [row for row in found if row["predicted_adversarial"] != row["label"]]
    stored = [row for row in fallen if row["changed"]]
    if fallen == stored and len(stored) <= max(1, len(rows) // 50):
        return None
    return f"{one_line(str(fallen[0]['id']), 80)} is misclassified, but the evaluation says that it withstood"


def check_unclaimed(images: Path, claims: Sequence[Claim]) -> Iterator[Finding]:
    """Look for kept images that belong to no evaluation, and for evaluations of which only some are kept.

    Args:
        images: ``RUN/images``.
        claims: all evaluations of the run. An index may be of several, of which each has more images than the one before.
    """
    for index in sorted(images.glob("*/index.json")):
        try:
            about, rows = _index(index)
            complete = read_index(index)["complete"]
            own = [claim for claim in claims if _belongs(about, claim)]
        except _DAMAGED:
            continue  # what is wrong with it was told
        known = {key for claim in own for key in claim.outcomes.keys}
        if not own and complete:
            yield _finding(index, "belongs to no evaluation of this run")
        elif own and not rows.keys() <= known:
            yield _finding(index, f"{len(rows.keys() - known)} images are not of the evaluation")
        elif own and complete and not any(_attacked(claim) <= rows.keys() for claim in own):
            yield _finding(index, "some of the attacked images are missing")


_DAMAGED = (InputError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError)


def _finding(index: Path, problem: str | None, where: str = "") -> Finding:
    message = f"{printable(index.parent.name)}: {problem or 'images are as the index says'}"
    return Finding("kept images", problem is None, message, where)


def _index(file: Path) -> tuple[Mapping[str, Any], dict[Key, Mapping[str, Any]]]:
    """What all images of an index have in common, and its rows."""
    plain_file(file, MOST_BYTES)
    index = read_index(file)
    rows = {(row["id"], row["pixels"], index["class_names"].index(row["label"])): row for row in index["images"]}
    if len(rows) != len(index["images"]):
        raise InputError("an image has more than one row")
    return index["about"], rows


def _attacked(claim: Claim) -> set[Key]:
    """The images that an evaluation attacks: those that are right without an attack."""
    return {key for key, right in zip(claim.outcomes.keys, claim.outcomes.right("clean"), strict=True) if right}


def _limits(attack: str, claim: Claim) -> ThreatModel:
    """What images of this attack stay within, by the evaluation and not by the index."""
    return find(attack).limits(ThreatModel(claim.result.eps, claim.result.norm))  # type: ignore[arg-type]


def _belongs(about: Mapping[str, Any], claim: Claim) -> bool:
    result = claim.result
    return (
        about["attack"] in result.attacks
        and (about["norm"], about["seed"]) == (result.norm, str(result.seed))
        and about["model"] == result.classifier
        and about.get("corruption") == result.corruption
        and parse_eps(about["eps"], result.norm) == _limits(about["attack"], claim).eps  # type: ignore[arg-type]
    )


def _read(folder: Path, name: str) -> Tensor:
    if not _PLACE.fullmatch(name):
        raise InputError(f"the index names a file elsewhere: {name}")
    return read_image(plain_file(folder / name, MOST_BYTES))


def _problem(
    folder: Path, about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], claim: Claim, classifier: PromptedCLIP
) -> str | None:
    """Say what is wrong with some rows of an index; None where nothing is."""
    threat, names = _limits(about["attack"], claim), claim.outcomes.class_names
    found = torch.stack([_read(folder, row["file"]) for row in rows])
    clean = torch.stack([_read(folder, row["clean_file"]) for row in rows])
    subject = Subject.of(classifier)
    with subject.fixed():
        predicted = subject.predict(found.to(subject.device)).tolist()
    distances = threat.distance(found.double(), clean.double()).tolist()
    for row, original, distance, guess in zip(rows, clean, distances, predicted, strict=True):
        name = one_line(row["id"], 80)
        if distance > threat.eps * (1 + 1e-4) + 2 / LEVELS:
            return f"{name} is further than eps {threat.eps:g} from its clean image"
        if _fingerprint(original) != row["pixels"]:
            return f"the clean image of {name} is not the evaluated one"
        if names[guess] != row["predicted_adversarial"]:
            return f"{name} is classified as {printable(names[guess])} and not as the index says"
        # Only images that are right without an attack are attacked.
        same = (row["predicted_clean"], row["attack"], row["eps"]) == (row["label"], about["attack"], threat.eps)
        if not same or abs(row["distance"] - distance) > 2 / LEVELS:
            return f"the index says something else of {name} than its files and the evaluation"
    return None


def _fingerprint(image: Tensor) -> str:
    """Fingerprint of an image (3,S,S) in [0,1] that came from 8 bits, as `Samples` makes it."""
    levels = (image.double() * 255).round().to(torch.uint8).contiguous()
    return hashlib.blake2b(levels.numpy().tobytes(), digest_size=8).hexdigest()
