"""What is judged: a model for the defences to hide, and honest models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

import apd
from apd.attacks.threat import parse_eps
from apd.data.dataset import Decoded
from benchmarks.defences.models import EPS, digits, drawn, train
from benchmarks.defences.planted import Case


@dataclass(frozen=True)
class Subjects:
    """Models on one set of images.

    Args:
        images: that all are evaluated on.
        class_names: in the order of the logits.
        eps: the budget.
        case: what the defences hide.
        honest: honest models by name.
    """

    images: Decoded
    class_names: tuple[str, ...]
    eps: float
    case: Case
    honest: dict[str, nn.Module]


def small_subjects(seeds: int, images: int) -> Subjects:
    """Small CNNs on the built-in digits, trained plainly and adversarially."""
    training, test, names = digits()
    test = drawn(test, images)
    plain = [train(training, seed, adversarial=False) for seed in range(max(seeds, 2))]
    robust = [train(training, seed, adversarial=True) for seed in range(seeds)]
    honest: dict[str, nn.Module] = {f"plain CNN, seed {seed}": model for seed, model in enumerate(plain[:seeds])}
    honest |= {f"adversarially trained CNN, seed {seed}": model for seed, model in enumerate(robust)}
    case = Case(plain[0], plain[1], test.pixels(), test.labels, EPS)
    return Subjects(test, names, EPS, case, honest)


def clip_subjects(model: str, source: str, eps: str, runs: Sequence[str], images: int) -> Subjects:
    """Zero-shot CLIP with two templates, as the model to hide and its decoy, and runs."""
    data, clip = apd.load_data(source, shots="all"), apd.load_clip(model, device="cpu")
    zero_shot = apd.PromptedCLIP(clip, None, data.class_names, data.templates)
    decoy = apd.PromptedCLIP(clip, None, data.class_names, ("{}",))
    test = drawn(data.test.decode(clip.info.preprocessing), images)
    case = Case(zero_shot.frozen(), decoy.frozen(), test.pixels(), test.labels, parse_eps(eps))
    honest = {"zero-shot CLIP": zero_shot, **dict(_runs(runs, data.class_names))}
    return Subjects(test, data.class_names, case.eps, case, honest)


def _runs(runs: Sequence[str], class_names: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    for path in runs:
        config = apd.Run.open(path).config
        classifier = apd.load_run(path, device="cpu")
        assert classifier.class_names == class_names, f"{path} knows other classes"
        yield f"{config.method.name}, seed {config.train.seed}", classifier
