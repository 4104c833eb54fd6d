"""Prompts and classifier: what is learned, what is fixed, and what the outside world sees."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.functional import hvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from apd.models import DualEncoder, EncoderInfo
from apd.models.classifier import PromptedCLIP, closest_classes
from apd.models.prompts import Prompts, PromptSpec

from .refusals import refused

CLASSES = ["cat", "dog", "grand piano"]
X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("coupling", ["none", "text-to-vision", "vision-to-text"])
def test_gradients_reach_every_prompt_and_nothing_else(
    family: str, coupling: str, request: pytest.FixtureRequest
) -> None:
    encoder: DualEncoder = request.getfixturevalue(family)
    spec = PromptSpec(text_tokens=3, visual_tokens=3, text_depth=2, visual_depth=3, coupling=coupling)
    model = PromptedCLIP(encoder, Prompts.initial(spec, encoder), CLASSES)
    # A sum of logits would not do: SigLIP's text head is linear behind the pooling, so take something curved.
    F.cross_entropy(model(X), torch.tensor([0, 1, 2, 0])).backward()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"prompts.{name}" for name, _ in model.prompts.named_parameters()}
    for name, parameter in model.prompts.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("tokens", "depth", "count"), [((4, 2), ("all", "all"), (3, 4)), ((0, 2), (1, 2), (0, 2)), ((2, 0), (2, 1), (2, 0))]
)
def test_spec_counts(
    clip: DualEncoder, tokens: tuple[int, int], depth: tuple[object, object], count: tuple[int, int]
) -> None:
    spec = PromptSpec(text_tokens=tokens[0], visual_tokens=tokens[1], text_depth=depth[0], visual_depth=depth[1])
    prompts = Prompts.initial(spec, clip)
    assert (len(prompts.text()), len(prompts.visual())) == count
    assert all(t.shape == (tokens[0], 24) for t in prompts.text())
    assert all(t.shape == (tokens[1], 32) for t in prompts.visual())


def test_words_fill_the_leading_tokens_and_the_rest_is_random(clip: DualEncoder) -> None:
    prompts = Prompts.initial(PromptSpec(text_tokens=6, words="a photo of a"), clip, seed=3)
    words = clip.model.text_model.embeddings.token_embedding(clip.prompt_ids(["a photo of a"]))[0, 1:5]
    assert torch.equal(prompts.text()[0][:4], words)
    assert prompts.text()[0][4:].std() < 0.05
    shallow = Prompts.initial(PromptSpec(text_tokens=2, words="a photo of a", deep_words=False), clip)
    assert torch.equal(shallow.text()[0], words[:2]) and shallow.text()[1].std() < 0.05


def test_text_prompts_that_start_as_the_template_give_the_template_s_logits(clip: DualEncoder) -> None:
    spec = PromptSpec(text_tokens=4, visual_tokens=0)
    model = PromptedCLIP(clip, Prompts.initial(spec, clip, "a photo of a"), CLASSES)
    torch.testing.assert_close(model(X), model.zero_shot()(X), rtol=1e-5, atol=1e-5)


def test_logits_are_scaled_cosines(siglip: DualEncoder) -> None:
    model = PromptedCLIP(siglip, None, CLASSES, ["a photo of a {}."])
    image = siglip.encode_image(X)
    text = siglip.encode_text(siglip.prompt_ids([f"a photo of a {name}." for name in CLASSES]))
    for b in range(4):
        for c in range(3):
            cosine = float(image[b] @ text[c] / (image[b].norm() * text[c].norm()))
            assert float(model(X)[b, c]) == pytest.approx(siglip.info.logit_scale * cosine - 5.0, abs=1e-4)


def test_several_templates_are_averaged(clip: DualEncoder) -> None:
    one, two = "a photo of a {}.", "the texture of {}"
    features = [PromptedCLIP(clip, None, CLASSES, [t]).class_features() for t in (one, two)]
    mean = F.normalize((features[0] + features[1]) / 2, dim=-1)
    torch.testing.assert_close(PromptedCLIP(clip, None, CLASSES, [one, two]).class_features(), mean)


def test_frozen_caches_class_features_and_gives_pixel_gradients_only(
    clip: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PromptedCLIP(clip, Prompts.initial(PromptSpec(), clip), CLASSES)
    frozen = model.frozen()
    calls = []
    monkeypatch.setattr(type(clip), "encode_text", lambda *a, **k: calls.append(1))
    x = X.clone().requires_grad_()
    frozen(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0 and not calls
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("spec", [PromptSpec(), PromptSpec(experts=2), PromptSpec(text_tokens=0, frame=0.1)])
def test_a_frozen_classifier_moves_where_it_is_told(clip: DualEncoder, spec: PromptSpec) -> None:
    """It has no modules, and stayed where it was without a word."""
    prompts = Prompts.initial(spec, clip)
    frozen = PromptedCLIP(deepcopy(clip), prompts, CLASSES).frozen()
    answers = frozen(X)
    doubled = frozen.double()(X.double())
    assert doubled.dtype == torch.float64
    torch.testing.assert_close(doubled.float(), answers, rtol=0, atol=1e-4)


def test_kept_features_follow_the_precision_of_the_encoder(clip: DualEncoder) -> None:
    model = PromptedCLIP(deepcopy(clip), None, CLASSES)
    answers = model(X)
    assert model.double()(X.double()).dtype == torch.float64
    torch.testing.assert_close(model.float()(X), answers, rtol=0, atol=1e-4)


def test_names_are_texts(clip: DualEncoder) -> None:
    model = PromptedCLIP(clip, None, CLASSES)
    with refused("class name", "2"):
        model.with_classes(["one", 2])  # type: ignore[list-item]
    with refused("template", "None"):
        PromptedCLIP(clip, None, CLASSES, [None])  # type: ignore[list-item]


def test_fixed_prompts_are_bound_once_until_they_change(clip: DualEncoder) -> None:
    model = PromptedCLIP(clip, Prompts.initial(PromptSpec(), clip), CLASSES)
    model.requires_grad_(False)
    first = model(X)
    assert model._fixed is not None
    bound = model._fixed[1]
    assert model._fixed[1] is bound and torch.equal(model(X), first)
    with torch.no_grad():
        model.prompts.text_tokens[0].add_(1.0)
    assert not torch.equal(model(X), first)


def test_prompts_that_take_the_place_of_others_are_bound_anew(clip: DualEncoder) -> None:
    first, second = (Prompts.initial(PromptSpec(), clip, seed=seed).requires_grad_(False) for seed in (0, 1))
    model = PromptedCLIP(clip, first, CLASSES)
    before, expected = model(X), PromptedCLIP(clip, second, CLASSES)(X)
    model.prompts = second
    assert torch.equal(model(X), expected) and not torch.equal(expected, before)
    second.text_tokens[0].data = first.text_tokens[0].data + 1.0
    assert torch.equal(model(X), PromptedCLIP(clip, second, CLASSES)(X))
    assert not torch.equal(model(X), expected)


def test_class_features_are_not_kept_in_half_precision(clip: DualEncoder) -> None:
    prompts = Prompts.initial(PromptSpec(), clip).requires_grad_(False)
    model, other = PromptedCLIP(clip, prompts, CLASSES), PromptedCLIP(clip, prompts, CLASSES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(X)
    assert torch.equal(model(X), other(X))


def test_new_classes_without_retraining(clip: DualEncoder) -> None:
    model = PromptedCLIP(clip, Prompts.initial(PromptSpec(), clip), CLASSES)
    other = model.with_classes(["one", "two"])
    assert other(X).shape == (4, 2) and other.prompts is model.prompts


def test_a_class_specific_context_is_its_own(clip: DualEncoder) -> None:
    spec = PromptSpec(text_tokens=3, text_depth=2, visual_tokens=0, class_specific=True)
    prompts = Prompts.initial(spec, clip, "a photo of a", n_classes=3)
    assert [tuple(t.shape) for t in prompts.text()] == [(3, 3, 24)] * 2
    model = PromptedCLIP(clip, prompts, CLASSES)
    start = model.class_features().detach()
    with torch.no_grad():
        prompts.text_tokens[0][1] += torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    moved = (model.class_features() - start).abs().amax(dim=1) > 1e-4
    assert moved.tolist() == [False, True, False], "a class's context is its own"
    assert model.with_classes(CLASSES).prompts is prompts
    with refused("3", "2"):
        PromptedCLIP(clip, prompts, ["one", "two"])
    saved = Prompts.from_tensors(spec, clip.info, prompts.state_dict())
    assert torch.equal(saved.text()[0], prompts.text()[0])
    with refused("prompts.class_specific", "n_classes"):
        Prompts(spec, clip.info)
    with refused("prompts.class_specific", "coupling none", by=ValueError):
        PromptSpec(text_tokens=2, visual_tokens=2, class_specific=True, coupling="text-to-vision")


def test_a_classifier_that_does_not_change_is_bound_in_float32_wherever_it_is(clip: DualEncoder) -> None:
    """A teacher is bound before training or in its first step, under autocast, as a run is started or resumed."""
    model = PromptedCLIP(clip, Prompts.initial(PromptSpec(), clip), CLASSES)
    outside = model.bind_detached().classes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.bind_detached().classes, outside)
        assert torch.equal(model.frozen().bound.classes, outside)
        assert not torch.equal(model.bind().classes, outside)


@pytest.mark.parametrize("learned", [False, True])
def test_what_is_kept_in_inference_mode_serves_gradients_later(clip: DualEncoder, learned: bool) -> None:
    model = PromptedCLIP(clip, Prompts.initial(PromptSpec(), clip).requires_grad_(False) if learned else None, CLASSES)
    with torch.inference_mode():
        inside = model(X)
    x = X.clone().requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None and x.grad.any() and torch.equal(model(X), inside)
    with torch.inference_mode():
        made = PromptedCLIP(clip, Prompts.initial(PromptSpec(), clip), CLASSES)
        assert made(X).shape == inside.shape


@pytest.mark.parametrize("experts", [1, 2])
def test_classes_that_were_not_learned_get_the_mean_context(clip: DualEncoder, experts: int) -> None:
    spec = PromptSpec(text_tokens=3, text_depth=2, visual_tokens=2, class_specific=True, experts=experts)
    model = PromptedCLIP(clip, Prompts(spec, clip.info, n_classes=3), CLASSES)
    learned = model.prompts.text()
    names = [CLASSES[2], "one", CLASSES[0]]
    other = model.with_classes(names)
    for ours, theirs in zip(other.prompts.text(), learned, strict=True):
        assert torch.equal(ours.select(-3, 0), theirs.select(-3, 2)) and torch.equal(
            ours.select(-3, 2), theirs.select(-3, 0)
        )
        torch.testing.assert_close(ours.select(-3, 1), theirs.sum(dim=-3) / 3)
    assert all(map(torch.equal, other.prompts.visual(), model.prompts.visual()))
    torch.testing.assert_close(other.with_classes(names[:1] + names[2:])(X), other(X)[:, [0, 2]])
    if experts == 1:  # of a mixture the gate is there, too
        torch.testing.assert_close(other.class_features()[[2, 0]], model.class_features()[[0, 2]])
    with torch.no_grad():
        other.prompts.text_tokens[0].zero_()
    assert model.prompts.text()[0].any(), "the learned prompts are not touched"
    tensors = model.prompts.state_dict()
    none = {name: t.narrow(-3, 0, 0) if name.startswith("text") else t for name, t in tensors.items()}
    with refused(clip.info.source, "not saved"):
        Prompts.from_tensors(spec, clip.info, none)


def test_class_specific_contexts_follow_their_classes_in_any_number(
    clip: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More classes than are encoded at once."""
    names = [f"{'cat ' * (1 + i % 5)}{'dog ' * (1 + i // 5 % 5)}{'red ' * (i // 25)}".strip() for i in range(100)]
    spec = PromptSpec(text_tokens=1, text_depth=1, visual_tokens=0, class_specific=True)
    model = PromptedCLIP(clip, Prompts(spec, clip.info, n_classes=len(names)), names, ["{}"])
    whole = model.class_features()
    encode, sizes = clip._encode_whole, []

    def counted(ids: torch.Tensor, tokens: object) -> torch.Tensor:
        sizes.append(len(ids))
        return encode(ids, tokens)

    monkeypatch.setattr(clip, "_encode_whole", counted)
    monkeypatch.setattr("apd.models.huggingface._GRAPH_BYTES", 1 << 20)
    torch.testing.assert_close(model.class_features(), whole)
    assert len(sizes) > 1 and sum(sizes) == len(names)


def test_a_frame_of_zeros_leaves_the_image_and_others_are_attacked_through(clip: DualEncoder) -> None:
    spec = PromptSpec(text_tokens=0, visual_tokens=0, frame=0.2)
    model = PromptedCLIP(clip, Prompts.initial(spec, clip), CLASSES)
    assert sum(p.numel() for p in model.prompts.parameters()) == 3 * (16 * 16 - 10 * 10)
    assert torch.equal(model(X), model.zero_shot()(X))
    with torch.no_grad():
        for strip in model.prompts.parameters():
            strip.add_(0.3)
    frame = torch.full((3, 16, 16), 0.3)
    frame[:, 3:13, 3:13] = 0
    wanted = F.normalize(clip.encode_image(X + frame), dim=-1)
    torch.testing.assert_close(model.bind().features(X), wanted)

    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model.frozen()(x), torch.tensor([0, 1, 2, 0])), x)
    y = (X + frame).requires_grad_()
    (through,) = torch.autograd.grad(F.cross_entropy(model.zero_shot().frozen()(y), torch.tensor([0, 1, 2, 0])), y)
    torch.testing.assert_close(gradient, through)
    assert gradient[:, :, 0].abs().sum() > 0, "the attack may change what is under the frame"
    with refused("(batch, 3, 16, 16)", "(3, 16, 16)"):
        model(X[0])


def test_features_of_templates_are_computed_once_and_in_full_precision(clip: DualEncoder) -> None:
    spec = PromptSpec(text_tokens=0, visual_tokens=2)
    model, fresh = (PromptedCLIP(clip, Prompts.initial(spec, clip), CLASSES) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = model.bind().classes
    assert model.bind().classes is first and torch.equal(first, fresh.bind().classes)


@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize(
    ("pixels", "names"),
    [
        ((X * 255).round(), [f"{(X * 255).round().max():g}", "by 255"]),
        ((X - 0.48) / 0.27, [f"{((X - 0.48) / 0.27).min():.3g}", "Normalize"]),
        ((X * 255).byte(), ["torch.uint8", "by 255"]),
        (X.numpy(), ["ndarray", "torch.from_numpy"]),
        ([X[0]], ["list", "read_image"]),
        (torch.rand(1, 3, 20, 20), ["(1, 3, 20, 20)", "classifier.encoder.info.preprocessing.apply"]),
    ],
)
def test_pixels_that_are_not_the_encoder_s_are_refused(
    clip: DualEncoder, prompts: bool, pixels: Tensor, names: list[str]
) -> None:
    model = PromptedCLIP(clip, Prompts.initial(PromptSpec(), clip) if prompts else None, CLASSES)
    with refused(*names):
        model(pixels)
    model(X), model(X * 1.3 - 0.1), model(X[:0])


def test_any_values_go_through_the_frozen_classifier(clip: DualEncoder) -> None:
    noisy = X + torch.randn(X.shape, generator=torch.Generator().manual_seed(0))
    assert PromptedCLIP(clip, None, CLASSES).frozen()(noisy).shape == (4, 3)


@pytest.mark.parametrize(
    ("names", "templates", "named"),
    [
        (["cat"], ["a {}"], ["1", "['cat']"]),
        (["cat", "dog", "cat"], ["a {}"], ["'cat'"]),
        (["cat", "dog"], ["a photo"], ["'a photo'", "{}"]),
        (["cat", "dog"], [], ["template", "{}"]),
        (["cat", "dog " * 20], ["a {}"], ["dog dog", "23", "16"]),
    ],
)
def test_classes_that_cannot_be(clip: DualEncoder, names: list[str], templates: list[str], named: list[str]) -> None:
    with refused(*named):
        PromptedCLIP(clip, None, names, templates)


def test_prompts_that_cannot_be(clip: DualEncoder) -> None:
    with refused("prompts.visual_depth", "5", "4", "all"):
        Prompts(PromptSpec(visual_depth=5), clip.info)
    with refused("prompts.coupling=text-to-vision", "2", "3"):
        Prompts(PromptSpec(text_tokens=2, visual_tokens=3, coupling="text-to-vision"), clip.info)
    tensors = Prompts(PromptSpec(visual_tokens=3), clip.info).state_dict()
    with refused("visual_tokens.0", "(3, 32)"):
        Prompts.from_tensors(PromptSpec(visual_tokens=4), clip.info, tensors)


class _Convolutional(DualEncoder):
    """An encoder of another kind: its image tower takes no tokens."""

    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.inner, self.tower = encoder, nn.Sequential(nn.Conv2d(3, 20, 16), nn.Flatten()).requires_grad_(False)
        self.info = EncoderInfo(**{**vars(encoder.info), "source": "convolutional", "visual_depth": 0})

    def encode_image(self, x: Tensor, tokens: object = ()) -> Tensor:
        return self.tower(x)

    def encode_text(self, ids: Tensor, tokens: object = ()) -> Tensor:
        return self.inner.encode_text(ids, tokens)

    def prompt_ids(self, texts: object, n_tokens: int = 0) -> Tensor:
        return self.inner.prompt_ids(texts, n_tokens)

    def trim(self, ids: Tensor) -> Tensor:
        return self.inner.trim(ids)

    def word_states(self, words: str, n_tokens: int) -> list[Tensor]:
        return self.inner.word_states(words, n_tokens)


def test_an_encoder_without_visual_tokens_says_so_and_takes_text_prompts(clip: DualEncoder) -> None:
    encoder = _Convolutional(clip)
    with refused("convolutional", "prompts.visual_tokens=0"):
        Prompts.initial(PromptSpec(), encoder)
    model = PromptedCLIP(encoder, Prompts.initial(PromptSpec(visual_tokens=0), encoder), CLASSES)
    assert model(X).shape == (4, 3)


@pytest.mark.parametrize("depths", [{}, {"text_depth": 1, "visual_depth": 1}, {"text_depth": 2, "deep_words": False}])
def test_words_from_which_nothing_would_start_are_refused(
    clip: DualEncoder, monkeypatch: pytest.MonkeyPatch, depths: dict[str, Any]
) -> None:
    mapped = {"text_tokens": 2, "visual_tokens": 2, "coupling": "vision-to-text", "words": "a photo", **depths}
    with refused("prompts.words", "mapped from visual ones"):
        Prompts.initial(PromptSpec(**mapped), clip)
    monkeypatch.setattr(clip, "word_states", lambda *_: [])
    with refused("prompts.words", "no states of words"):
        Prompts.initial(PromptSpec(text_tokens=2, words="a photo"), clip)


def test_deeper_text_tokens_behind_mapped_ones_start_from_their_own_block_s_words(clip: DualEncoder) -> None:
    spec = PromptSpec(text_tokens=2, visual_tokens=2, visual_depth=1, coupling="vision-to-text")
    prompts = Prompts.initial(spec, clip, "a photo")
    states = clip.word_states("a photo", 2)
    assert [torch.equal(own, state) for own, state in zip(prompts.text_tokens, states[1:], strict=True)] == [True, True]


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that anything returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, out.numel() if isinstance(out, Tensor) else 0)
        return out


def test_closest_classes_of_many_are_found_in_little_memory() -> None:
    n = 3000
    features = F.normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    features[2900] = features[17]
    with Largest() as largest:
        cosine, one, other = closest_classes(features)
    assert largest.numbers < n * n / 8
    assert cosine == pytest.approx(1.0, abs=1e-9) and {one, other} == {17, 2900}
    features[2900] = -features[17]
    whole = (features.double() @ features.double().T).fill_diagonal_(-2)
    cosine, one, other = closest_classes(features)
    assert cosine == pytest.approx(float(whole.max()), abs=1e-6)
    assert float(whole[one, other]) == float(whole.max()) and one != other
    features[2800] = torch.nan
    assert 2800 in closest_classes(features)[1:] and math.isnan(closest_classes(features)[0])


def test_features_follow_weights_of_the_encoder_that_are_changed_in_place(clip: DualEncoder) -> None:
    own = deepcopy(clip)
    model = PromptedCLIP(own, None, CLASSES)
    before = model(X)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.mul_(1.5)
    assert not torch.equal(model(X), before)
    assert torch.equal(model(X), PromptedCLIP(own, None, CLASSES)(X))


def test_class_names_may_come_one_by_one_and_are_not_empty(clip: DualEncoder) -> None:
    prompts = Prompts.initial(PromptSpec(text_tokens=2, class_specific=True), clip, n_classes=3)
    model = PromptedCLIP(clip, prompts, CLASSES)
    assert model.with_classes(name for name in reversed(CLASSES)).class_names == tuple(reversed(CLASSES))
    with refused("class name", "''"):
        model.with_classes(["", "cat"])


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_second_derivatives_are_those_of_differences(family: str, request: pytest.FixtureRequest) -> None:
    """By plain products; the fused attention of torch has none and says so."""
    model = PromptedCLIP(request.getfixturevalue(family), None, CLASSES).frozen()
    labels, way = torch.tensor([0, 1, 2, 0]), torch.randn(X.shape, generator=torch.Generator().manual_seed(1))

    def slope(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), labels), x)
        return gradient

    with sdpa_kernel(SDPBackend.MATH):
        _, found = hvp(lambda x: F.cross_entropy(model(x), labels), X, way)
        expected = (slope(X + 1e-3 * way) - slope(X - 1e-3 * way)) / 2e-3
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=0.05, atol=float(0.02 * found.abs().max()))
