"""Health checks against models that hide: which named check notices, and that honest models pass."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apd.attacks import Averaged, ThreatModel, find
from apd.evaluation import Result, evaluate, evaluate_tensors, parse_settings
from apd.evaluation.checks import COLLAPSED, collapse
from apd.evaluation.frozen import Subject
from apd.evaluation.result import Accuracy, Scores
from apd.evaluation.surface import SHIFTED_SHARE, WAYS, shifted, shifted_images
from apd.models.classifier import PromptedCLIP
from apd.models.encoder import Tokens
from apd.runs.chance import chance_note

from .refusals import contains
from .test_evaluation import data_of
from .toys import ToyCLIP, decoded, toy_clip, trained

NAMES, EPS = ("a", "b", "c", "d", "e"), 0.06


def judged(model: nn.Module, **more: Any) -> Result:
    values = {"attacks": ("pgd-20", "apgd-ce+dlr"), "eps": EPS, "batch_size": 40, **more}
    return evaluate_tensors(model, decoded(40, 5), NAMES, parse_settings(values))


def failed(result: Result) -> set[str]:
    return {check.name for check in result.checks if check.passed is False}


class Hidden(nn.Module):
    """A model behind something."""

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.model = trained(5)
        for name, value in more.items():
            setattr(self, name, value)


class Detached(Hidden):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(x.detach())
        return z


class Inference(Hidden):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            z: Tensor = self.model(x)
        return z


class ThroughNumPy(Hidden):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(torch.from_numpy(np.round(x.numpy() * 64) / 64))
        return z


class Constant(Hidden):
    def forward(self, x: Tensor) -> Tensor:
        return torch.eye(5)[:1].expand(len(x), -1)


class NotANumber(Hidden):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(x)
        return z + 0 * (x - x.detach()).flatten(1).sum(dim=1, keepdim=True).sqrt()


@pytest.mark.parametrize("model", [Detached, Inference, ThroughNumPy, Constant, NotANumber])
def test_without_a_gradient_a_black_box_attacks_and_the_result_is_not_reliable(
    model: type[Hidden], few_queries: None
) -> None:
    # Within a large eps most images fall to the first of Square's queries.
    result = judged(model(), attacks=("pgd-2", "apgd-ce"), eps=0.5)
    assert set(result.attacks) == {"square"} and result.attacks["square"].runs == ("square",)
    assert result.reliable is False and "gradient" in failed(result)
    (check,) = (check for check in result.checks if check.name == "gradient")
    for part in ("pgd-2, apgd-ce", f"square {result.worst.accuracy:.2f}"):
        assert part in check.message
    assert not {"true gradients", "huge eps", "stronger attack"} & {check.name for check in result.checks}


def test_black_box_attacks_that_are_asked_for_stay() -> None:
    chosen = parse_settings({"attacks": ("clean", "square", "pgd-2"), "eps": EPS}).without_gradient()
    assert chosen.attacks == ("clean", "square") and not chosen.needs_gradient
    assert find("apgd-ce+dlr").needs_gradient and find("autoattack").needs_gradient


def test_an_error_that_has_nothing_to_do_with_gradients_is_raised() -> None:
    class Broken(Hidden):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        judged(Broken())


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class FalseGradient(Hidden):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(Reversed.apply(x))
        return z


class Watching(Hidden):
    """Another model where gradients are recorded."""

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(x)
        return z.flip(-1) if x.requires_grad else z


class Kept(Hidden):
    """Kept clean answers near known images, with a tiny gradient."""

    kept: Tensor
    smooth: bool

    def forward(self, x: Tensor) -> Tensor:
        own: Tensor = self.model(x)
        far, which = torch.cdist(x.detach().flatten(1), self.kept.flatten(1), p=float("inf")).min(dim=1)
        share = ((far - 0.1) / 0.1 if self.smooth else (far > 0.1).to(x)).clamp(1e-4, 1)[:, None]
        with torch.no_grad():
            answers = self.model(self.kept)[which]
        return share * own + (1 - share) * answers


class Added(Hidden):
    """The own answer, and a bonus for the right class: the same throughout the ball, and faded out in three of its radii."""

    kept: Tensor
    labels: Tensor
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        far = torch.cdist(x.detach().flatten(1), self.kept.flatten(1), p=float("inf"))
        near = ((2.9 * self.eps - far) / (1.85 * self.eps)).clamp(0, 1)
        z: Tensor = self.model(x)
        return z + 40 * near @ torch.eye(z.shape[-1])[self.labels]


class Scaled(Hidden):
    """Logits that float32 cannot hold with all digits, or whose squares it cannot hold."""

    factor: float

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(x) * self.factor**0.5
        return z * self.factor**0.5


class Noisy(Hidden):
    """Answers by chance."""

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(x + 0.05 * torch.randn_like(x))
        return z


class SameNoise(Hidden):
    """A mean over draws of noise that are the same for every image and every call."""

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(4, *x.shape[1:], generator=torch.Generator().manual_seed(0))
        z: Tensor = torch.stack([self.model(x + 0.05 * each).log_softmax(dim=-1) for each in noise]).mean(dim=0)
        return z


@pytest.mark.parametrize(
    ("model", "named"),
    [  # What a check must name at least; others may fail too.
        (lambda: FalseGradient(), {"true gradients"}),
        (lambda: Watching(), {"gradient recording"}),
        (lambda: Kept(kept=decoded(40, 5).pixels(), smooth=False), {"jumps", "flat spots"}),
        (lambda: Kept(kept=decoded(40, 5).pixels(), smooth=True), {"flat spots"}),
        (lambda: Added(kept=decoded(40, 5).pixels(), labels=decoded(40, 5).labels, eps=EPS), {"shifted images"}),
        (lambda: Scaled(factor=1e-42), {"logit range"}),
        (lambda: Scaled(factor=1e25), {"logit range"}),
        (lambda: Noisy(), {"batch size"}),
        (lambda: Averaged(Noisy(), 20), {"batch size"}),
    ],
)
def test_what_hides_is_named(model: Any, named: set[str]) -> None:
    hidden = model()
    # A mean over 20 draws takes 20 times as long, and what is named here needs no attack.
    result = judged(hidden, **({"attacks": "pgd-5"} if isinstance(hidden, Averaged) else {}))
    assert named <= failed(result) and result.reliable is False, result.checks


def test_only_images_that_fall_wherever_they_are_moved_count_and_only_where_many_do() -> None:
    images, threat = decoded(40, 5), ThreatModel(EPS)
    x, labels, seeds, all_of_them = images.pixels(), images.labels, torch.arange(40), torch.ones(40, dtype=torch.bool)
    kept = Added(kept=x, labels=labels, eps=EPS)
    alone = Subject.of(kept.eval().requires_grad_(False))
    assert shifted_images(alone, x, labels, seeds, all_of_them, threat).passed is False
    none = shifted_images(alone, x, labels, seeds, ~all_of_them, threat)
    assert none.passed and none.value == 0
    few = shifted_images(alone, x[:3], labels[:3], seeds[:3], all_of_them[:3], threat)
    assert few.passed and few.value > SHIFTED_SHARE, "too few images to tell"
    still = [shifted(x, *way) for way in WAYS]
    for (down, right), moved in zip(WAYS, still, strict=True):
        assert torch.equal(moved[..., 1:-1, 1:-1], x.roll((down, right), (-2, -1))[..., 1:-1, 1:-1])
    # Where one of the four copies is known as well, an image does not count.
    one = Added(kept=torch.cat([x, still[2]]), labels=labels.repeat(2), eps=EPS)
    known = shifted_images(Subject.of(one.eval().requires_grad_(False)), x, labels, seeds, all_of_them, threat)
    assert known.passed and known.value == 0


def test_a_weak_attack_is_not_taken_for_kept_answers() -> None:
    result = judged(trained(5), attacks="pgd-1", eps=0.04)
    assert "stronger attack" in failed(result) and "shifted images" not in failed(result), result.checks


def test_shifted_images_ask_for_an_attack_that_ran_and_for_gradients() -> None:
    assert "shifted images" not in {check.name for check in judged(trained(5), attacks="clean").checks}
    assert "shifted images" not in {check.name for check in judged(trained(5), eps=0.0).checks}
    (check,) = (check for check in judged(trained(5, "linear"), eps=0.02).checks if check.name == "shifted images")
    assert check.passed and check.value < SHIFTED_SHARE and contains(check.message, "one pixel")


def test_a_clip_of_other_code_may_be_cut_too() -> None:
    class Cut(ToyCLIP):
        def encode_image(self, x: Tensor, tokens: Tokens = ()) -> Tensor:
            return super().encode_image(x.detach(), tokens)

    data, encoder = data_of(5), Cut(toy_clip(5).weight.detach())
    classifier = PromptedCLIP(encoder, None, data.class_names, data.templates)
    result = evaluate(classifier, data, attacks="pgd-2", eps=0.5, limit=8, control=False)
    assert set(result.attacks) == {"square"} and "gradient" in failed(result)


def test_honest_models_pass_in_another_norm() -> None:
    result = judged(trained(5), norm="l2", eps=0.5)
    assert result.reliable is True, result.checks


def test_a_mean_over_the_same_draws_for_all_images_is_reliable() -> None:
    result = judged(SameNoise())
    assert result.reliable is True, result.checks


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_honest_models_pass(kind: str) -> None:
    for factor in (0.1, 1.0, 3.0):
        model = copy.deepcopy(trained(5, kind))
        last = model[-1]
        last.weight.data *= factor
        last.bias.data *= factor
        result = judged(model)
        assert result.reliable is True, (factor, result.checks)


def test_an_accuracy_at_chance_level_may_be_any_model_s() -> None:
    note = chance_note({"clean": 10.0, "clean_interval": (8.0, 13.0), "n_classes": 10})
    assert note is not None and contains(note, "10.0") and not contains(note, "CLIP")


def test_a_training_that_made_it_worse_is_not_the_images_fault() -> None:
    worse = {"clean": 10.0, "clean_interval": (8.0, 13.0), "n_classes": 10}
    known, unknown = (
        {**worse, "undefended": {"clean": share, "clean_interval": (share - 4, share + 4)}} for share in (78.0, 11.0)
    )
    note = chance_note(known)
    assert note is not None and contains(note, "78.0") and contains(note, "eps")
    assert chance_note(unknown) == chance_note(worse)


def test_a_collapse_warns_and_leaves_the_result_reliable() -> None:
    def scores(right: int, n: int = 100) -> Scores:
        clean = Accuracy.of([True] * right + [False] * (n - right))
        return Scores(clean=clean.accuracy, clean_interval=clean.interval, attacks={}, worst=clean)

    assert collapse(scores(11), scores(95)).passed is False and collapse(scores(11), scores(95)).warns
    assert collapse(scores(95 - int(COLLAPSED)), scores(95)).passed and collapse(scores(97), scores(95)).passed
    assert collapse(scores(1, 4), scores(2, 4)).passed, "too few images to tell"
    weak = trained(5)
    weak[-1].weight.data *= 0
    result = evaluate_tensors(
        weak, decoded(40, 5), NAMES, parse_settings({"attacks": "clean", "eps": EPS}), undefended=trained(5)
    )
    (told,) = (check.message for check in result.checks if check.name == "collapse")
    assert "collapse" in failed(result) and not contains(told, "training") and not contains(told, "train.augment.flip")
    assert contains(collapse(scores(11), scores(95)).message, "train.augment.flip")
    assert dataclasses.asdict(result.reliability)["warnings"]
