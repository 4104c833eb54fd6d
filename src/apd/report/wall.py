"""A wall of images: clean, changed by an attack, the change amplified, and what two classifiers say."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from apd.attacks import ThreatModel, sample_seeds
from apd.data import Dataset
from apd.data.corruptions import corrupt, parse_corruption
from apd.data.dataset import Decoded, in_turn
from apd.errors import InputError
from apd.evaluation.examples import Attacked, amplified, attacked
from apd.evaluation.frozen import Subject
from apd.evaluation.images import read_image, read_index
from apd.evaluation.inputs import load_other, own_data
from apd.evaluation.samples import Samples
from apd.evaluation.stored import Outcomes
from apd.models.calibration import Calibration, probabilities
from apd.models.classifier import PromptedCLIP
from apd.report.facts import RunFacts

BUDGET = 2_500_000
"""Bytes that all images of a page may take, about."""
_SIZES = ((224, 90), (224, 75), (160, 75), (112, 70), (64, 70))
"""Longest side and JPEG quality, tried in turn until the budget holds."""
_LOSSLESS = 64
"""Images up to this side are PNG, and shown pixel by pixel."""
ZERO_SHOT = "zero-shot CLIP"


@dataclass
class Gallery:
    """Collects images, and gives each a name under which `encode` returns it."""

    images: dict[str, Tensor] = field(default_factory=dict)

    def add(self, image: Tensor) -> str:
        """Take an image (3,S,S) in [0,1]."""
        name = f"image{len(self.images)}"
        self.images[name] = image
        return name

    def encode(self, budget: int = BUDGET) -> dict[str, str]:
        """All images as ``data:`` addresses, as good as the budget allows."""
        for side, quality in _SIZES:
            found = {name: _address(image, side, quality) for name, image in self.images.items()}
            if sum(map(len, found.values())) <= budget:
                break
        return found if self.images else {}


def _address(image: Tensor, side: int, quality: int) -> str:
    array = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    picture, small = Image.fromarray(array), max(image.shape[1:]) <= _LOSSLESS
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if small:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=quality)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def choose(outcomes: Outcomes, attack: str, each: int) -> list[tuple[int, bool]]:
    """Choose images by a rule that does not look at them: as many successes as failures, and of each class one in turn.

    Args:
        outcomes: what became of each image of the evaluation.
        attack: its name.
        each: the first so many that stay right under the attack, and the first so many that fall to it.

    Returns:
        Index and whether it stays right; images that are wrong without an attack are left out.
    """
    clean, held = outcomes.right("clean"), outcomes.right(attack)
    order = [i for i in sorted(range(len(outcomes)), key=lambda i: outcomes.ids[i]) if clean[i]]
    kept = in_turn([i for i in order if held[i]], outcomes.labels)[:each]
    fell = in_turn([i for i in order if not held[i]], outcomes.labels)[:each]
    return [(i, True) for i in kept] + [(i, False) for i in fell]


@dataclass(frozen=True, eq=False)
class Seen:
    """A run's classifier, and the images it was evaluated on, as both are now.

    Args:
        classifier: for the classes of ``data``.
        data: the evaluated classes.
    """

    classifier: PromptedCLIP
    data: Dataset


def see(facts: RunFacts, classifier: PromptedCLIP, source: str | None) -> Seen:
    """Load the images of a run's headline.

    Raises:
        InputError: images that cannot be read, or other data than the run's whose place nobody told.
    """
    summary = facts.summary
    if source is None and not facts.own_data:
        raise InputError(
            f"{facts.run.path} was evaluated on {summary['data']}, which is not its own data; give the images with --data."
        )
    data = load_other(facts.run, source) if source else own_data(facts.run)
    wanted = data.classes(summary["classes"])
    if classifier.class_names != wanted.class_names:
        classifier = classifier.with_classes(wanted.class_names, wanted.templates)
    return Seen(classifier, wanted)


def build_wall(facts: RunFacts, seen: Seen, attack: str, each: int, gallery: Gallery) -> dict[str, Any]:
    """Attack the chosen images anew, and say what happens.

    Args:
        facts: the run.
        seen: its model and data.
        attack: that makes the images on the page.
        each: images of each kind.
        gallery: takes the images.

    Returns:
        ``entries``, one per image, and ``example``, one of them with noise and attack for the section on the threat model.

    Raises:
        InputError: the images are not those that were evaluated.
    """
    outcomes, summary = facts.outcomes, facts.summary
    assert outcomes is not None and facts.attack is not None
    chosen = choose(outcomes, facts.attack, each)
    if not chosen:
        return {"entries": [], "example": None, "attack": attack, "kept": False}
    x, labels, ids = evaluated_images(seen, outcomes, [i for i, _ in chosen], summary)
    threat = ThreatModel(summary["eps"], summary["norm"])
    zero_shot, kept = seen.classifier.zero_shot(), _kept(facts, seen.classifier, x, [i for i, _ in chosen])
    about = (x, labels, ids, threat, summary["seed"], attack)
    lanes = [attacked(ZERO_SHOT, zero_shot, *about), kept or attacked(facts.name, seen.classifier, *about)]
    names = seen.data.class_names
    entries = []
    for row, (_, held) in enumerate(chosen):
        entry = {"id": ids[row], "class": names[int(labels[row])], "held": held}
        shown = [
            _lane(lane, x[row], row, int(labels[row]), names, gallery, calibration)
            for lane, calibration in zip(lanes, (None, facts.calibration), strict=True)
        ]
        entries.append({**entry, "clean": gallery.add(x[row]), "lanes": shown})
    fallen = _telling(entries)
    example = _example(entries[fallen], x[fallen], ids[fallen], threat, summary["seed"], zero_shot, names)
    example["noise"] = gallery.add(example["noise"])
    return {"entries": entries, "example": example, "attack": attack, "kept": kept is not None}


def _telling(entries: Sequence[Mapping[str, Any]]) -> int:
    """Find the first image that zero-shot CLIP gets right until it is attacked; else one that the run loses; else the first."""
    lost = [
        row
        for row, entry in enumerate(entries)
        if entry["lanes"][0]["before"]["right"] and not entry["lanes"][0]["after"]["right"]
    ]
    return next(iter(lost), next((row for row, entry in enumerate(entries) if not entry["held"]), 0))


def _kept(facts: RunFacts, model: PromptedCLIP, x: Tensor, index: Sequence[int]) -> Attacked | None:
    """The images that the evaluation's own attack made, if it kept all of these (`apd evaluate --save-images`)."""
    outcomes, summary = facts.outcomes, facts.summary
    assert outcomes is not None
    wanted = {"attack": facts.attack, "model": Subject.of(model).fingerprint, "eps": summary["eps"]}
    wanted |= {"norm": summary["norm"], "seed": str(summary["seed"]), "corruption": summary["corruption"]}
    for file in sorted(facts.run.images.glob("*/index.json")):
        found = read_index(file)
        if any(found["about"].get(key) != value for key, value in wanted.items()):
            continue
        files = {(image["id"], image["pixels"]): file.parent / image["file"] for image in found["images"]}
        keys = [(outcomes.ids[i], outcomes.pixels[i]) for i in index]
        if all(key in files for key in keys):
            read = [read_image(files[key]) for key in keys]
            if any(image.shape != x.shape[1:] for image in read):
                raise InputError(f"{file} is of images of another size; remove {file.parent} to make them again.")
            images = torch.stack(read).to(x)
            frozen = model.frozen()
            with torch.no_grad():
                return Attacked(facts.name, images, frozen(x), frozen(images))
    return None


def evaluated_images(
    seen: Seen, outcomes: Outcomes, index: Sequence[int], summary: Mapping[str, Any]
) -> tuple[Tensor, Tensor, list[str]]:
    """Images (N,3,S,S) in [0,1], labels (N,) and ids of an evaluation.

    Raises:
        InputError: images that are gone, or not those that were evaluated.
    """
    images = seen.data.split(summary["split"])
    places = {id_: i for i, id_ in enumerate(images.ids)}
    wanted = [outcomes.ids[i] for i in index]
    lost = [id_ for id_ in wanted if id_ not in places]
    if lost:
        raise InputError(f"The image {lost[0]} that was evaluated is no longer in {seen.data.source}; evaluate again.")
    decoded = images.select([places[id_] for id_ in wanted]).decode(seen.classifier.encoder.info.preprocessing)
    if summary.get("corruption"):
        seeds = sample_seeds(decoded.ids, summary["seed"], "corruption")
        pixels = corrupt(decoded.images, *parse_corruption(summary["corruption"]), seeds)
        decoded = Decoded(pixels, decoded.labels, decoded.ids)
    known = outcomes.keys
    changed = [key[0] for key, i in zip(Samples(decoded).keys, index, strict=True) if key != known[i]]
    if changed:
        raise InputError(f"The image {changed[0]} is not the one that was evaluated; evaluate again.")
    return Samples(decoded).batch(range(len(decoded)), seen.classifier.encoder.device)


def _lane(
    lane: Attacked,
    clean: Tensor,
    row: int,
    label: int,
    names: Sequence[str],
    gallery: Gallery,
    calibration: Calibration | None,
) -> dict[str, Any]:
    change, factor = amplified(lane.images[row] - clean)
    touched = bool((lane.images[row] != clean).any())
    return {
        "classifier": lane.title,
        "before": _answer(lane.before[row], label, names, calibration),
        "after": _answer(lane.after[row], label, names, calibration),
        "attacked": touched,
        "factor": round(factor, 1) if touched else None,
        "image": gallery.add(lane.images[row]),
        "change": gallery.add(change),
    }


def _answer(logits: Tensor, label: int, names: Sequence[str], calibration: Calibration | None = None) -> dict[str, Any]:
    best = int(logits.argmax())
    probability = float(probabilities(logits, calibration)[best])
    return {"class": names[best], "probability": round(probability, 4), "right": best == label}


def _example(
    entry: Mapping[str, Any],
    clean: Tensor,
    id_: str,
    threat: ThreatModel,
    seed: int,
    zero_shot: PromptedCLIP,
    names: Sequence[str],
) -> dict[str, Any]:
    """An image with random noise of the same size, beside what an attack on zero-shot CLIP makes of it."""
    noisy = threat.random_start(clean[None], sample_seeds([id_], seed, "noise"))
    with torch.no_grad():
        answer = _answer(zero_shot.frozen()(noisy)[0], names.index(entry["class"]), names)
    return {"entry": entry, "noise": noisy[0], "noise_answer": answer}
