"""A mixture of prompts: several sets of class features, weighted by the image itself."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import apd
from apd.models import DualEncoder
from apd.models.classifier import PromptedCLIP
from apd.models.mixture import Mixture
from apd.models.prompts import Prompts, PromptSpec
from apd.runs.average import average_runs

from .refusals import refused

CLASSES = ["cat", "dog", "grand piano"]
SPEC = {"text_tokens": 3, "visual_tokens": 2}
QUICK: dict[str, Any] = {"steps": 4, "batch_size": 4, "device": "cpu", "quiet": True, "optimizer": {"lr": 0.05}}


def pixels(n: int = 4) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def mixed(encoder: DualEncoder, experts: int = 3, **spec: Any) -> PromptedCLIP:
    """A classifier of experts that differ, with a gate that has opinions."""
    prompts = Prompts.initial(PromptSpec(experts=experts, std=0.5, **SPEC, **spec), encoder, n_classes=len(CLASSES))
    torch.nn.init.normal_(prompts.gate, std=4.0, generator=torch.Generator().manual_seed(1))
    return PromptedCLIP(encoder, prompts, CLASSES)


def alone(model: PromptedCLIP, expert: int) -> PromptedCLIP:
    """The classifier with one of its experts."""
    assert model.prompts is not None
    spec = model.prompts.spec.model_copy(update={"experts": 1})
    state = {name: tensor for name, tensor in model.prompts.state_dict().items() if name != "gate"}
    state = {name: tensor[expert] if name.startswith("text_tokens") else tensor for name, tensor in state.items()}
    prompts = Prompts.from_tensors(spec, model.encoder.info, state)
    return PromptedCLIP(model.encoder, prompts, model.class_names, model.templates)


@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_logits_are_those_of_each_expert_alone_weighted_by_the_image(
    family: str, class_specific: bool, request: pytest.FixtureRequest
) -> None:
    model = mixed(request.getfixturevalue(family), class_specific=class_specific)
    assert model.prompts is not None
    with torch.no_grad():
        found, features = model.frozen()(pixels()), model.bind().features(pixels()).tolist()
        each = [alone(model, expert)(pixels()).tolist() for expert in range(3)]
    gate = model.prompts.gate.tolist()
    shares = []
    for image, feature in enumerate(features):
        odds = [math.exp(sum(a * b for a, b in zip(row, feature, strict=True))) for row in gate]
        shares.append([odd / sum(odds) for odd in odds])
        for c in range(len(CLASSES)):
            by_hand = sum(share * logits[image][c] for share, logits in zip(shares[-1], each, strict=True))
            assert found[image, c].item() == pytest.approx(by_hand, abs=1e-3)
    assert max(abs(a - b) for a, b in zip(shares[0], shares[1], strict=True)) > 0.001, "the gate sees no image"


def test_the_gradient_of_the_pixels_goes_through_the_gate(clip: DualEncoder) -> None:
    generator = torch.Generator().manual_seed(2)
    sets = F.normalize(torch.randn(3, 4, 6, generator=generator, dtype=torch.float64), dim=-1)
    mixture = Mixture(sets, torch.randn(3, 6, generator=generator, dtype=torch.float64))
    features = torch.randn(2, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixture.cosines, (features,)), "finite differences"

    model, x = mixed(clip).frozen(), pixels().requires_grad_()
    (through,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    bound = model.bound
    assert bound.mixture is not None
    f = bound.features(x)
    cosines = torch.einsum("bd,kcd->bkc", f, bound.mixture.sets)
    fixed = (bound.mixture.weights(f).detach()[:, :, None] * cosines).sum(dim=1) * clip.info.logit_scale
    torch.testing.assert_close(fixed, model(x))
    (around,) = torch.autograd.grad(fixed[:, 0].sum(), x)
    assert (through - around).abs().max() > 0.05 * through.abs().max(), "the gate is part of what is attacked"


def test_it_starts_from_equal_weights_and_experts_that_differ(clip: DualEncoder) -> None:
    one = Prompts.initial(PromptSpec(**SPEC), clip)
    prompts = Prompts.initial(PromptSpec(experts=2, **SPEC), clip)
    assert all(torch.equal(many[0], tokens) for many, tokens in zip(prompts.text(), one.text(), strict=True))
    apart = [(many[1] - many[0]).abs().max() for many in prompts.text()]
    assert all(0 < distance < 0.2 for distance in apart), "noise on the same words"
    model = PromptedCLIP(clip, prompts, CLASSES)
    bound = model.bind_detached()
    assert bound.mixture is not None
    assert torch.equal(bound.mixture.weights(bound.features(pixels())), torch.full((4, 2), 0.5))
    torch.testing.assert_close(bound.classes.norm(dim=-1), torch.ones(3))
    assert torch.equal(model.class_features(), bound.classes)


def test_one_expert_is_what_prompts_were_before(clip: DualEncoder) -> None:
    spec = PromptSpec(**SPEC)
    assert "experts" not in spec.model_dump() and "gate" not in Prompts(spec, clip.info).state_dict()
    assert PromptedCLIP(clip, Prompts(spec, clip.info), CLASSES).bind().mixture is None
    assert str(PromptSpec(experts=3, text_tokens=2, visual_tokens=0)).startswith("3 sets")


@pytest.mark.parametrize("wrong", [{"text_tokens": 0}, {"coupling": "text-to-vision"}])
def test_experts_without_text_tokens_of_their_own_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"prompts\.experts=2"):
        PromptSpec(**{"experts": 2, "text_tokens": 4, "visual_tokens": 4, **wrong})


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, clip: DualEncoder, colours: Path) -> apd.Run:
    """A run of two experts, trained for a few steps."""
    method = {"name": "apd", "teacher": "tuned", "prompts": {"experts": 2, "std": 0.5, **SPEC}}
    data = apd.load_data(colours, shots=4)
    return apd.train(clip, data, method=method, output=tmp_path_factory.mktemp("mixture") / "run", **QUICK)


def test_the_gate_is_learned_saved_loaded_and_evaluated(learned: apd.Run, colours: Path) -> None:
    assert learned.load_prompts()["gate"].abs().min() > 0
    assert learned.manifest["prompts"]["experts"] == 2
    model = apd.load_run(learned.path)
    assert model.bind_detached().mixture is not None
    assert torch.equal(model(pixels()), model.frozen()(pixels()))
    result = apd.evaluate_run(learned.path, attacks="pgd-2", eps="8/255", limit=6, quiet=True)
    assert result.sound and result.attacks["pgd-2"].accuracy <= result.clean
    assert "experts 2" in (learned.path / "README.md").read_text()
    others = model.with_classes(["red", "blue"])
    assert others(pixels()).shape == (4, 2)


def test_two_mixtures_have_a_mean(learned: apd.Run, tmp_path: Path) -> None:
    other = shutil.copytree(learned.path, tmp_path / "other")
    mean = average_runs([learned.path, other], tmp_path / "mean")
    torch.testing.assert_close(apd.load_run(mean.path)(pixels()), apd.load_run(learned.path)(pixels()))


def test_a_program_weighs_the_experts_as_the_run_does(learned: apd.Run, tmp_path: Path) -> None:
    apd.export.torch(learned.path, tmp_path / "mixture.pt2", check_images=64)
    program = torch.export.load(tmp_path / "mixture.pt2").module()
    torch.testing.assert_close(program(pixels()), apd.load_run(learned.path)(pixels()), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("form", "options"), [("huggingface", {}), ("open_clip", {}), ("torch", {"open_vocabulary": True})]
)
def test_forms_with_one_feature_per_class_refuse_a_mixture(
    learned: apd.Run, tmp_path: Path, form: str, options: dict[str, Any]
) -> None:
    with refused("mixture", "--to onnx"):
        getattr(apd.export, form)(learned.path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
