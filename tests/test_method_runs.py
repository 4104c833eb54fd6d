"""Every method takes steps, makes a run that loads back, and is deployed as it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import apd
from apd.attacks import PGD
from apd.data.batch import Batch
from apd.data.dataset import Decoded
from apd.methods import METHODS, Preparation, find_method
from apd.methods.advpt import AdvPT
from apd.models import DualEncoder
from apd.models.classifier import PromptedCLIP
from apd.runs.folder import Run
from apd.training.step import TrainStep

from .test_method_family import CLASSES, LABELS, SIDE, THREAT


@pytest.mark.parametrize("name", METHODS)
def test_a_run_of_one_epoch_loads_back(tmp_path: Path, shallow: DualEncoder, colours: Path, name: str) -> None:
    data = apd.load_data(colours, shots=3)
    run = apd.train(
        shallow, data, method=name, eps="4/255", epochs=1, output=tmp_path / "run", device="cpu", batch_size=4
    )
    classifier, x = apd.load_run(run.path), torch.rand(5, 3, SIDE, SIDE)
    plain = PromptedCLIP(shallow, None, data.class_names, data.templates)
    assert torch.equal(classifier(x), plain(x)) == (name == "zero-shot")
    assert run.manifest["summary"]["steps"] == (0 if name == "zero-shot" else 3)
    result = apd.evaluate(
        classifier, data, attacks="pgd-1", eps="4/255", limit=6, batch_size=6, checks=False, quiet=True
    )
    assert result.worst.accuracy <= result.clean


@pytest.mark.parametrize(
    "method",
    [
        {"name": "apt", "clean": 0.5, "prompts": {"class_specific": True}},
        {"name": "advvp-pixels", "prompts": {"visual_tokens": 2}},
    ],
)
def test_averaged_prompts_of_any_kind_are_deployed(
    tmp_path: Path, shallow: DualEncoder, colours: Path, method: dict[str, Any]
) -> None:
    data = apd.load_data(colours, shots=2)
    run = apd.train(shallow, data, method=method, epochs=1, ema=0.5, output=tmp_path / "run", device="cpu")
    classifier = apd.load_run(run.path)
    assert torch.isfinite(classifier(torch.rand(2, 3, SIDE, SIDE))).all()
    assert {name.split(".")[0] for name in run.load_prompts()} == {
        name.split(".")[0] for name, _ in classifier.prompts.named_parameters()
    }


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_step_on_a_siglip(siglip: DualEncoder, name: str) -> None:
    cls = find_method(name)
    method = cls(cls.Settings(), PromptedCLIP(siglip, None, CLASSES))
    if not method.learns:
        return
    decoded = Decoded(torch.randint(0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8), LABELS, tuple("abcd"))
    attack = PGD(steps=1)
    method.prepare(Preparation(decoded, attack, THREAT, 0, lambda other: None, decoded))
    terms = TrainStep(method, attack=attack)(Batch.of(decoded.pixels(), LABELS), THREAT)[0]
    torch.stack(list(terms.values())).sum().backward()
    for parameter in method.student.prompts.parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0


def test_a_zero_shot_run_takes_an_ensemble_of_templates(tmp_path: Path, shallow: DualEncoder, colours: Path) -> None:
    templates = ("a photo of a {}.", "the texture of {}.")
    data = apd.load_data(colours, shots=1, templates=templates)
    run = apd.train(shallow, data, method="zero-shot", output=tmp_path / "run", device="cpu")
    x = torch.rand(3, 3, SIDE, SIDE)
    assert torch.equal(apd.load_run(run.path)(x), PromptedCLIP(shallow, None, data.class_names, templates)(x))


def test_a_resumed_advpt_run_keeps_its_bank(
    tmp_path: Path, shallow: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = apd.load_data(colours, shots=4)
    settings = {"epochs": 2, "batch_size": 4, "checkpoint_every": 2, "log_every": 1, "device": "cpu"}
    whole = apd.train(shallow, data, method="advpt", output=tmp_path / "whole", **settings)
    log = Run.log

    def crash(self: Run, record: dict[str, Any]) -> None:
        log(self, record)
        if record["step"] == 3:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(Run, "log", crash)
        apd.train(shallow, data, method="advpt", output=tmp_path / "broken", **settings)
    monkeypatch.setattr(AdvPT, "prepare", lambda *_: pytest.fail("the bank is filled once a run"))
    resumed = apd.train(shallow, data, method="advpt", output=tmp_path / "broken", resume=True, **settings)
    a, b = whole.load_prompts(), resumed.load_prompts()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
