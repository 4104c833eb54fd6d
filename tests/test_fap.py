"""FAP against a slow reference: both towers rerun at full length, one image at a time, coupling and KL written out."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from apd.attacks import PGD
from apd.attacks.threat import ThreatModel
from apd.data.batch import Batch
from apd.methods import Step
from apd.methods.consistency import FAP, FAPSettings
from apd.models import DualEncoder, load_clip
from apd.models.classifier import PromptedCLIP
from apd.runs.config import load_config
from apd.training.step import TrainStep

from .refusals import refused

CLASSES = ["cat", "dog", "grand piano"]
LABELS = torch.tensor([0, 2, 1, 1])
PROMPTS = {"text_depth": 2, "visual_depth": 3}


def build(clip: DualEncoder, dtype: torch.dtype) -> FAP:
    encoder = load_clip(clip.info.source, dtype=dtype)
    return FAP(FAPSettings.model_validate({"prompts": PROMPTS}), PromptedCLIP(encoder, None, CLASSES), seed=3).to(dtype)


def pixels(seed: int, dtype: torch.dtype) -> Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed)).to(dtype)


def slow_features(method: FAP, image: Tensor) -> tuple[Tensor, Tensor]:
    """Features (D,) of one image and (C, D) of the classes, from the parameters themselves."""
    encoder, prompts = method.student.encoder, method.student.prompts
    visual = list(prompts.visual_tokens)
    text = [visual[d] @ prompts.maps[d].weight.T + prompts.maps[d].bias for d in range(2)]
    ids = encoder.prompt_ids([f"{name}." for name in CLASSES], 2)
    classes = encoder.encode_text(ids, text)
    feature = encoder.encode_image(image[None], visual)[0]
    return feature / feature.norm(), torch.stack([c / c.norm() for c in classes])


def slow_kl(p: Tensor, q: Tensor) -> Tensor:
    return sum(p[c] * (p[c].log() - q[c].log()) for c in range(len(p)))


def slow_loss(method: FAP, x: Tensor, x_adv: Tensor, weight: float = 1.5) -> Tensor:
    total, scale = torch.zeros((), dtype=x.dtype), method.student.encoder.info.logit_scale
    for clean, adversarial, label in zip(x, x_adv, LABELS.tolist(), strict=True):
        f, t = slow_features(method, clean)
        f_adv, t_adv = slow_features(method, adversarial)
        p, q = (scale * t @ f).softmax(0), (scale * t_adv @ f_adv).softmax(0)
        total = total - p[label].log() + weight * (f @ f_adv + 1) * slow_kl(p, q)
    return total / len(x)


def gradients(method: FAP, loss: Tensor) -> dict[str, Tensor]:
    method.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_loss_and_gradients_are_the_formula_s(clip: DualEncoder, dtype: torch.dtype, tolerance: float) -> None:
    """The formula in float64, so that its own rounding does not count."""
    method, exact = build(clip, dtype), build(clip, torch.float64)
    x = pixels(0, torch.float32)
    x_adv = (x + 0.8 * (pixels(1, torch.float32) - 0.5)).clamp(0, 1)
    terms = method.loss(Step(Batch.of(x.to(dtype), LABELS), method.student.bind()), x_adv.to(dtype))
    slow = slow_loss(exact, x.double(), x_adv.double())
    assert float(terms["adv_kl"].detach()) > 1e-4, "the images must differ enough to test the term"
    assert float(sum(terms.values()).detach()) == pytest.approx(float(slow.detach()), rel=tolerance)
    ours, wanted = gradients(method, sum(terms.values())), gradients(exact, slow)
    assert ours.keys() == wanted.keys() and len(ours) == 3 + 2 * 2
    whole = torch.cat([gradient.flatten() for gradient in wanted.values()]).norm()
    for name, gradient in wanted.items():
        assert float((ours[name] - gradient).norm()) <= tolerance * float(whole), name


def test_a_whole_step_is_the_formula_s(clip: DualEncoder) -> None:
    method, x, seeds = build(clip, torch.float64), pixels(0, torch.float64), torch.arange(4)
    threat = ThreatModel(4 / 255)
    terms = TrainStep(method, attack=PGD(steps=2, step_size=1.0))(Batch.of(x, LABELS), threat)[0]
    ours = gradients(method, torch.stack(list(terms.values())).sum())

    scale = method.student.encoder.info.logit_scale
    x_adv = threat.random_start(x, seeds)
    for _ in range(2):
        moved = []
        for clean, image in zip(x, x_adv, strict=True):
            image = image.detach().requires_grad_()
            (f, t), (f_adv, t_adv) = slow_features(method, clean), slow_features(method, image)
            divergence = slow_kl((scale * t @ f).softmax(0), (scale * t_adv @ f_adv).softmax(0))
            (gradient,) = torch.autograd.grad(divergence, image)
            step = (image.detach() + threat.eps * gradient.sign() - clean).clamp(-threat.eps, threat.eps)
            moved.append((clean + step).clamp(0, 1))
        x_adv = torch.stack(moved)
    slow = slow_loss(method, x, x_adv)
    assert float(sum(terms.values()).detach()) == pytest.approx(float(slow.detach()), rel=1e-8)
    for name, gradient in gradients(method, slow).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-6, atol=1e-10)


def test_the_clean_pass_is_done_once_a_step(clip: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    method, x = build(clip, torch.float32), pixels(0, torch.float32)
    encoder, seen = method.student.encoder, []
    encode = type(encoder).encode_image

    def counting(self: DualEncoder, images: Tensor, tokens: object = ()) -> Tensor:
        seen.append(torch.equal(images, x))
        return encode(self, images, tokens)

    monkeypatch.setattr(type(encoder), "encode_image", counting)
    TrainStep(method, attack=PGD(steps=2, step_size=1.0))(Batch.of(x, LABELS), ThreatModel(4 / 255))
    assert seen == [True, False, False, False], "clean, two attack steps, adversarial"


def test_the_published_settings(clip: DualEncoder) -> None:
    flags = {"data.source": "digits", "method.name": "fap"}
    settings = load_config(flags=flags, sets=["method.preset=published"]).method.settings
    assert settings.weight == 1.5
    spec = settings.prompts
    assert (spec.text_tokens, spec.visual_tokens, spec.text_depth, spec.visual_depth) == (2, 2, 9, 9)
    assert spec.coupling == "vision-to-text"
    with refused("prompts.text_depth", "9", "3", "all"):
        FAP(settings, PromptedCLIP(clip, None, CLASSES))
    with pytest.raises(ValidationError):
        FAPSettings(weight=-1)
