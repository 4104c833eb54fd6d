"""What an export costs in accuracy: on clean images, and on adversarial ones that were made on the original."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from apd.attacks import AttackBatch
from apd.attacks.threat import ThreatModel, parse_eps
from apd.data.dataset import Decoded
from apd.errors import InputError
from apd.evaluation.frozen import Subject
from apd.evaluation.settings import find_within
from apd.export.base import Runner, Source
from apd.export.check import run_in_batches
from apd.util.messages import get_logger
from apd.util.progress import watched

_BATCH = 64

log = get_logger("apd.export")


@dataclass(frozen=True)
class Price:
    """Accuracies in percent of the original and its export on the same images.

    Args:
        images: labelled test images.
        data: the data set's name.
        attack, eps, norm: how adversarial images were made, on the original.
        clean: accuracy of the original and of the export on clean images.
        adversarial: the same on the adversarial images; for the export this is transfer: an attack that knows the export
            itself may find more.
        same_class: share of the adversarial images that both give the same class.
    """

    images: int
    data: str
    attack: str
    eps: str
    norm: str
    clean: tuple[float, float]
    adversarial: tuple[float, float]
    same_class: float


def threat_of(source: Source) -> ThreatModel:
    """Return how far adversarial images of the measurement go.

    Raises:
        InputError: an eps that is not one, or an attack within another norm.
    """
    config = source.run.config.train
    find_within(source.settings.attack, config.norm)
    return ThreatModel(parse_eps(source.settings.eps or str(config.eps), config.norm), config.norm)


def images_to_measure(source: Source, count: int) -> tuple[str, Decoded]:
    """Return the name of the run's data, and test images of it; those that cannot be read are left out with a warning.

    Raises:
        InputError: the images are not found, or are of other classes.
    """
    config, classifier = source.run.config, source.classifier
    data = config.data.for_evaluation().load(config.train.seed).classes(config.data.classes)
    if data.class_names != classifier.class_names or not len(data.test):
        raise InputError(f"{data.name} has no test images of the run's classes; leave out --measure.")
    chosen = data.test.sample(count)
    images = chosen.decode(classifier.encoder.info.preprocessing, skip_bad=True, progress=True)
    if not len(images):
        raise InputError(f"None of the test images of {data.name} can be read; leave out --measure.")
    if len(images) < len(chosen):
        log.warning(
            f"{len(chosen) - len(images)} of {len(chosen)} test images cannot be read; --measure leaves them out."
        )
    return data.name, images


def measure(source: Source, exported: Runner, name: str, images: Decoded) -> Price:
    """Measure the price on images of the run's data; see `images_to_measure`."""
    settings, config, classifier = source.settings, source.run.config, source.classifier
    eps, norm, threat = settings.eps or str(config.train.eps), config.train.norm, threat_of(source)
    attack, subject = find_within(settings.attack, norm), Subject.of(classifier)
    right, others = [], []
    for first in watched(
        range(0, len(images), _BATCH), -(-len(images) // _BATCH), f"{settings.attack} on the original"
    ):
        index = slice(first, first + _BATCH)
        x, labels, ids = images.pixels(index), images.labels[index], images.ids[index]
        with subject.fixed():
            guesses = subject.predict(x)
            kept = (guesses == labels).nonzero().flatten()
            harmed = x.clone()
            if len(kept):
                batch = AttackBatch(x, labels, ids).select(kept)
                harmed[kept] = attack.checked(attack(subject.model, batch.copy(), threat), batch, threat).images
            fooled = subject.predict(harmed)
        own = [run_in_batches(exported, some, _BATCH).argmax(-1) for some in (x, harmed)]
        right.append(torch.stack([guesses == labels, own[0] == labels, fooled == labels, own[1] == labels]))
        others.append(own[1] == fooled)
    shares = [round(100 * float(row.double().mean()), 2) for row in torch.cat(right, dim=1)]
    same = round(100 * float(torch.cat(others).double().mean()), 2)
    return Price(len(images), name, settings.attack, eps, norm, (shares[0], shares[1]), (shares[2], shares[3]), same)
