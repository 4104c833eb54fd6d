"""The cost of a training step: passes through the image tower, counted in the loop itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from apd.data.dataset import Decoded
from apd.models import DualEncoder
from apd.settings.train import TrainSettings
from apd.training import loop
from apd.training.batches import TrainingImages
from apd.util.progress import Count

from .test_robust_training import LABELS, X, build


class Passes:
    """Images that went forwards and backwards through the image tower."""

    def __init__(self) -> None:
        self.forward = self.backward = 0

    @contextmanager
    def of(self, clip: DualEncoder) -> Iterator[None]:
        encode = clip.encode_image

        def counting(x: Tensor, tokens: object = ()) -> Tensor:
            self.forward += len(x)
            out = encode(x, tokens)
            if out.requires_grad:
                out.register_hook(self._back)
            return out

        clip.encode_image = counting
        try:
            yield
        finally:
            del clip.encode_image

    def _back(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


VISUAL = {"prompts": {"visual_tokens": 2}}


@pytest.mark.parametrize(
    ("name", "options", "train", "passes"),
    [
        ("advvlp", {}, {}, (3, 3)),
        ("advvlp", {}, {"attack": {"steps": 7}}, (8, 8)),
        ("advvlp", {}, {"attack": {"kind": "fgsm-rs"}}, (2, 2)),
        ("advvlp", {}, {"attack": {"kind": "n-fgsm"}}, (2, 2)),
        ("advvlp", {}, {"attack": {"kind": "free"}}, (1, 1)),
        ("advvlp", {}, {"attack": {"kind": "carried"}}, (1, 1)),
        ("advvlp", {}, {"attack": {"loss": "kl"}}, (4, 3)),
        ("advvlp", {}, {"optimizer": {"sam": 0.1}}, (4, 4)),
        ("advvlp", {}, {"eps_per_image": True}, (4, 4)),
        ("vlp", {}, {}, (1, 1)),
        ("fare", VISUAL, {"attack": {"kind": "free"}}, (1.25, 1)),
        ("agft", {}, {"attack": {"kind": "free"}}, (1.25, 1)),
        ("fare", VISUAL, {"optimizer": {"sam": 0.1}}, (5, 4)),
        ("pmg", {}, {"attack": {"kind": "free"}}, (3, 2)),
        ("apd", {"teacher": "frozen"}, {}, (4, 3)),
        ("apd", {"teacher": "frozen"}, {"attack": {"kind": "free"}}, (1.25, 1)),
        ("apd", {"teacher": "frozen"}, {"attack": {"kind": "carried"}}, (2, 1)),
        ("apd", {"teacher": "frozen"}, {"optimizer": {"awp": 0.1}}, (5, 4)),
        ("apd", {"teacher": "online"}, {}, (4, 4)),
        ("apd", {"teacher": "online"}, {"attack": {"kind": "free"}}, (2, 2)),
        ("apd", {"teacher": "frozen", "clean_ce": 1.0}, {"attack": {"loss": "kl"}}, (5, 4)),
        ("apd", {"teacher": "frozen", "soft_target": "adversarial", "inner": "ce"}, {}, (4, 3)),
        ("apd", {"teacher": "frozen", "soft_target": "adversarial"}, {}, (5, 3)),  # the attack asks the teacher on x
    ],
)
def test_passes_are_those_of_the_table(
    tmp_path: Path, shallow: DualEncoder, name: str, options: dict, train: dict, passes: tuple[float, float]
) -> None:
    """Counted over 4 optimiser steps in the loop itself, in passes of a batch a step."""
    from accelerate import Accelerator

    batch = Decoded((X * 255).to(torch.uint8), LABELS, tuple("abcd"))
    config = TrainSettings(epochs=4, batch_size=4, augment={"enabled": False}, **train)
    training = loop.Loop(
        build(shallow, name, **options), TrainingImages(batch, batch, 16, False), config, Accelerator(cpu=True), None
    )
    counter = Passes()
    with counter.of(shallow):
        training.run_through(lambda: None)
    assert (counter.forward / 16, counter.backward / 16) == passes


@pytest.mark.parametrize(
    ("name", "train", "expected"),
    [
        ("apd", {}, 12),
        ("apd", {"attack": {"steps": 7}}, 32),
        ("apd", {"attack": {"kind": "free"}}, 4),
        ("promptkd", {}, 4),
    ],
)
def test_the_time_left_of_a_teacher_counts_the_training_that_follows(
    shallow: DualEncoder, monkeypatch: pytest.MonkeyPatch, name: str, train: dict, expected: float
) -> None:
    """In steps of the teacher, whose step is one pass; of another CLIP's nothing is known."""
    from accelerate import Accelerator

    counts: list[Count] = []

    def counted(*args: object, **kwargs: object) -> Count:
        counts.append(Count(*args, **kwargs))
        return counts[-1]

    monkeypatch.setattr(loop, "Count", counted)
    batch = Decoded((X * 255).to(torch.uint8), LABELS, tuple("abcd"))
    config = TrainSettings(epochs=4, batch_size=4, **train)
    training = loop.Loop(
        build(shallow, name), TrainingImages(batch, batch, 16, False), config, Accelerator(cpu=True), None
    )
    training.tune(build(shallow, "vlp"))
    training.tune(build(copy.deepcopy(shallow), "vlp"))
    assert [count.then for count in counts] == [expected, None]
