"""The scripts of examples/ train and attack as they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

import apd

FOLDER = Path(__file__).resolve().parents[1] / "examples"
EPS = 14 / 255


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "package"), [("torch_loop", "torch"), ("lightning_loop", "lightning")])
def test_loops_of_your_own_make_the_model_more_robust(name: str, package: str) -> None:
    pytest.importorskip(package, reason=f"needs {package}")
    clip, data = apd.load_clip("glyphs"), apd.load_data("digits", shots=2)
    torch.manual_seed(0)
    before = [p.clone() for p in clip.parameters()]
    train = example(name).train
    start, classifier = (train(clip, data, EPS, epochs=epochs, lr=0.01) for epochs in (0, 4))
    assert classifier.prompts is not None and not any(p.requires_grad for p in classifier.parameters())
    module = example("attack_libraries")
    x, labels = module.images_of(classifier, data, 20)
    before_training, after_training = (
        float(F.cross_entropy(model(module.own_pgd(model.frozen(), x, labels, EPS)), labels))
        for model in (start, classifier)
    )
    assert after_training < 0.9 * before_training
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
