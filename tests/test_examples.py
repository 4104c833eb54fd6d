"""The scripts of examples/ train, attack and evaluate as they say, here on a small random CLIP and images of colours."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

import apd
from apd.models import load_clip

FOLDER = Path(__file__).resolve().parents[1] / "examples"
EPS = 2 / 255


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "package"), [("torch_loop", "torch"), ("lightning_loop", "lightning")])
def test_loops_of_your_own_learn(name: str, package: str, clip_folder: Path, colours: Path) -> None:
    pytest.importorskip(package, reason=f"needs {package}")
    clip, data = load_clip(clip_folder), apd.load_data(colours, shots=4)
    torch.manual_seed(0)
    before = [p.clone() for p in clip.parameters()]
    train = example(name).train
    start, classifier = (train(clip, data, EPS, epochs=epochs, lr=0.02) for epochs in (0, 25))
    assert classifier.prompts is not None and not any(p.requires_grad for p in classifier.parameters())
    images = data.train.decode(clip.info.preprocessing)
    untrained, trained = (
        float(F.cross_entropy(model(images.pixels()), images.labels)) for model in (start, classifier)
    )
    assert trained < untrained - 0.1
    assert all(torch.equal(a, b) for a, b in zip(before, clip.parameters(), strict=True)), "the CLIP model is frozen"


@pytest.mark.parametrize("name", ["apd", "foolbox", "torchattacks"])
def test_attacks_of_other_libraries_stay_within_eps_and_fool(name: str, trained: Path, colours: Path) -> None:
    pytest.importorskip(name, reason=f"needs {name}")
    module, classifier = example("attack_libraries"), apd.load_run(trained)
    x, labels = module.images_of(classifier, apd.load_data(colours, shots=4), 6)
    victim = classifier.frozen()
    labels = victim(x).argmax(dim=1)  # what it says now counts as right, so that there is something to fool
    eps = 64 / 255
    found = module.ATTACKS[name](victim, x, labels, eps)
    assert found.shape == x.shape and float((found - x).abs().max()) <= eps + 1e-6
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert module.accuracy(victim, x, labels) == 100 > module.accuracy(victim, found, labels)
