"""Independent attack libraries, pointed from outside at a loaded classifier, agree with `apd evaluate`."""

from __future__ import annotations

import sys

import pytest
import torch

import apd
from apd.evaluation import Result

from .models import save_colours

EPS, LIMIT = 12 / 255, 60
SHARED = {"name": "advvlp", "prompts": {"class_specific": False}}


@pytest.fixture(scope="module")
def many_colours(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Enough test images for a percent to count."""
    return str(save_colours(tmp_path_factory.mktemp("images") / "many", per_class=110))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, clip: apd.DualEncoder, many_colours: str) -> apd.Run:
    """Prompts that are robust to half of what the attacks try."""
    settings = {"optimizer": {"lr": 0.1}, "augment": {"enabled": False}, "device": "cpu"}
    output = tmp_path_factory.mktemp("agreement") / "run"
    data = apd.load_data(many_colours, shots=4)
    return apd.train(clip, data, method=SHARED, eps="4/255", epochs=20, output=output, **settings)


def evaluated(run: apd.Run, source: str, attack: str) -> tuple[apd.PromptedCLIP, torch.Tensor, torch.Tensor, Result]:
    classifier, data = apd.load_run(run.path), apd.load_data(source, shots=4)
    options = {"limit": LIMIT, "batch_size": LIMIT, "control": False, "checks": False}
    result = apd.evaluate(classifier, data, attacks=[attack], eps="12/255", **options)
    decoded = data.test.sample(LIMIT, 0).decode(classifier.encoder.info.preprocessing)
    assert decoded.ids == result.ids
    return classifier, decoded.pixels(), decoded.labels, result


def disagreement(result: Result, attack: str, robust: torch.Tensor) -> float:
    return float((result.robust_mask(attack) != robust).float().mean())


def test_pyautoattack_from_outside(run: apd.Run, many_colours: str) -> None:
    from pyautoattack import AutoAttack

    classifier, x, y, result = evaluated(run, many_colours, "apgd-ce")
    outside = AutoAttack(classifier, norm="Linf", eps=EPS, seed=0, version="custom", attacks=["apgd-ce"])
    outside.apgd.n_restarts = 1
    trace = sys.gettrace()  # the library's check for dynamic models removes it, and coverage would end here
    x_adv, _ = outside.run_standard_evaluation(x, y, batch_size=LIMIT)
    sys.settrace(trace)
    with torch.no_grad():
        robust = classifier(x_adv).argmax(dim=1) == y
    assert 0 < robust.float().mean() < 1
    assert disagreement(result, "apgd-ce", robust) <= 0.02


def test_foolbox_from_outside(run: apd.Run, many_colours: str) -> None:
    foolbox = pytest.importorskip("foolbox")
    classifier, x, y, result = evaluated(run, many_colours, "pgd-20")
    model = foolbox.PyTorchModel(classifier.eval(), bounds=(0, 1), device="cpu")
    torch.manual_seed(0)
    attack = foolbox.attacks.LinfPGD(steps=20, abs_stepsize=EPS / 4, random_start=True)
    _, _, fooled = attack(model, x, y, epsilons=EPS)
    assert 0 < fooled.float().mean() < 1
    assert disagreement(result, "pgd-20", ~fooled) <= 0.02
