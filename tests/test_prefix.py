"""The prompted towers against a plain walk through the model's own blocks: same features, same gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apd.models import DualEncoder, Tokens, huggingface, load_clip
from apd.models.classifier import PromptedCLIP
from apd.models.fast import kernels
from apd.models.fast.kernels import PatchEmbedding, linear, quick_gelu
from apd.models.fast.prefix import Layout
from apd.models.prompts import Prompts, PromptSpec

NAMES = ["cat", "grand piano", "dark red dog", "one", "the bright green grand piano", "two", "blue texture", "dog"]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def plain_text(encoder: DualEncoder, ids: Tensor, tokens: Tokens) -> Tensor:
    """One class after the other, whole sequences, the model's own blocks; an explicit mask, no helper."""
    text, first = encoder.model.text_model, 1 if encoder.info.causal_text else 0
    features = []
    for c, row in enumerate(ids):
        own = [t[c] if t.dim() == 3 else t for t in tokens]
        words = list(text.embeddings.token_embedding(row))
        words[first : first + len(own[0])] = list(own[0])
        h = torch.stack(words) + text.embeddings.position_embedding.weight[: len(row)]
        mask = torch.full((len(row), len(row)), -torch.inf, dtype=h.dtype).triu(1)[None, None]
        for depth, block in enumerate(text.encoder.layers):
            if 0 < depth < len(own):
                h = torch.stack([*h[:first], *own[depth], *h[first + len(own[0]) :]])
            h = block(h[None], mask if encoder.info.causal_text else None)[0]
        h = text.final_layer_norm(h)
        if encoder.info.causal_text:
            end = row.tolist().index(encoder.tokenizer.eos_token_id)
            features.append(encoder.model.text_projection(h[end]))
        else:
            features.append(text.head(h[-1]))
    return torch.stack(features)


def plain_image(encoder: DualEncoder, x: Tensor, tokens: Tokens) -> Tensor:
    """Whole sequences through the model's own blocks, with an ordinary convolution in front."""
    tower, embeddings = encoder.model.vision_model, encoder.model.vision_model.embeddings
    weight, bias = embeddings.patch_embedding.weight, embeddings.patch_embedding.bias
    h = torch.nn.functional.conv2d((x - encoder.mean) / encoder.std, weight, bias, stride=8).flatten(2).transpose(1, 2)
    if encoder.info.family == "clip":
        h = torch.cat([embeddings.class_embedding.expand(len(x), 1, -1), h], dim=1)
    h = h + embeddings.position_embedding.weight
    n = h.shape[1]
    h = torch.cat([h, tokens[0].expand(len(x), -1, -1)], dim=1)
    h = tower.pre_layrnorm(h) if encoder.info.family == "clip" else h
    for depth, block in enumerate(tower.encoder.layers):
        if 0 < depth < len(tokens):
            h = torch.cat([h[:, :n], tokens[depth].expand(len(x), -1, -1)], dim=1)
        h = block(h, None)
    h = tower.post_layernorm(h)
    return encoder.model.visual_projection(h[:, 0]) if encoder.info.family == "clip" else tower.head(h[:, :n])


def assert_same(got: Callable[[], Tensor], wanted: Callable[[], Tensor], inputs: list[Tensor]) -> None:
    """Features and the gradients of something curved in them, relative to the largest of each."""
    sides = []
    for features in (got(), wanted()):
        direction = torch.linspace(-1, 1, features.numel(), dtype=features.dtype).view_as(features)
        loss = (torch.nn.functional.normalize(features, dim=-1) * direction).sum()
        sides.append([features, *torch.autograd.grad(loss, inputs)])
    for ours, theirs in zip(*sides, strict=True):
        assert theirs.abs().max() > 0
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert error < TOLERANCE[theirs.dtype], float(error)


def some_tokens(n: int, width: int, depth: int, dtype: torch.dtype, classes: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n + depth)
    shape = (classes, n, width) if classes else (n, width)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(depth)]


@pytest.fixture(scope="module")
def encoders(clip_folder: Path, siglip_folder: Path) -> dict[tuple[str, torch.dtype], DualEncoder]:
    folders = {"clip": clip_folder, "siglip": siglip_folder}
    return {(f, d): load_clip(folder, dtype=d).to(d) for f, folder in folders.items() for d in TOLERANCE}


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which way the text goes, call by call."""
    seen: list[str] = []
    for name in ("_encode_suffixes", "_encode_whole"):
        real = getattr(huggingface.HuggingFaceEncoder, name)

        def spy(self: object, *args: object, name: str = name, real: Callable[..., Tensor] = real) -> Tensor:
            seen.append(name)
            return real(self, *args)

        monkeypatch.setattr(huggingface.HuggingFaceEncoder, name, spy)
    return seen


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("chunked", [False, True])
def test_shared_prefix(
    encoders: dict,
    walks: list[str],
    monkeypatch: pytest.MonkeyPatch,
    n: int,
    depth: int,
    dtype: torch.dtype,
    chunked: bool,
) -> None:
    encoder = encoders["clip", dtype]
    if chunked:
        monkeypatch.setattr(huggingface, "_GRAPH_BYTES", 40_000)
    tokens, ids = some_tokens(n, 24, depth, dtype), encoder.prompt_ids(NAMES, n)
    assert_same(
        lambda: encoder.encode_text(encoder.trim(ids), tokens), lambda: plain_text(encoder, ids, tokens), tokens
    )
    # Forward once a part, and once more backward where there are several.
    assert set(walks) == {"_encode_suffixes"} and (len(walks) >= 6 if chunked else len(walks) == 1)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(("family", "classes"), [("siglip", 0), ("siglip", 8), ("clip", 8)])
@pytest.mark.parametrize("chunked", [False, True])
def test_where_no_prefix_is_shared(
    encoders: dict,
    walks: list[str],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    classes: int,
    depth: int,
    dtype: torch.dtype,
    chunked: bool,
) -> None:
    encoder = encoders[family, dtype]
    if chunked:
        monkeypatch.setattr(huggingface, "_GRAPH_BYTES", 120_000)
    tokens, ids = some_tokens(2, 24, depth, dtype, classes), encoder.prompt_ids(NAMES, 2)
    assert_same(
        lambda: encoder.encode_text(encoder.trim(ids), tokens), lambda: plain_text(encoder, ids, tokens), tokens
    )
    assert set(walks) == {"_encode_whole"} and (len(walks) >= 4 if chunked else len(walks) == 1)


def test_different_starts_share_nothing(encoders: dict, walks: list[str]) -> None:
    encoder = encoders["clip", torch.float64]
    tokens, ids = some_tokens(2, 24, 2, torch.float64), encoder.prompt_ids(NAMES, 2)
    ids[3, 0] = ids[3, 1] = 4
    assert_same(lambda: encoder.encode_text(ids, tokens), lambda: plain_text(encoder, ids, tokens), tokens)
    assert walks == ["_encode_whole"]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("depth", [1, 3, 4])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_image_rows_that_nothing_reads_are_left_out(
    encoders: dict, family: str, depth: int, dtype: torch.dtype
) -> None:
    encoder = encoders[family, dtype]
    tokens = some_tokens(3, 32, depth, dtype)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=dtype).requires_grad_()
    assert_same(lambda: encoder.encode_image(x, tokens), lambda: plain_image(encoder, x, tokens), [x, *tokens])


def test_no_gradient_of_many_classes_is_the_same(encoders: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoders["clip", torch.float64]
    tokens, ids = some_tokens(2, 24, 3, torch.float64), encoder.prompt_ids(NAMES, 2)
    whole = encoder.encode_text(ids, tokens).detach()
    monkeypatch.setattr(huggingface, "_GRAPH_BYTES", 40_000)
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode_text(ids, tokens), whole, rtol=1e-12, atol=1e-12)


def test_class_features_keep_their_order_and_depend_on_nothing_else(clip: DualEncoder) -> None:
    prompts = Prompts.initial(PromptSpec(text_tokens=2, visual_tokens=0), clip)
    together = PromptedCLIP(clip, prompts, NAMES).class_features()
    for pair in ((0, 4), (6, 1), (7, 2)):
        alone = PromptedCLIP(clip, prompts, [NAMES[i] for i in pair]).class_features()
        torch.testing.assert_close(alone, together[list(pair)], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 40, 400])
def test_a_layout_holds_every_suffix_once_and_little_else(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    ends = torch.randint(5, 12, (count,), generator=generator)
    ids = torch.randint(1, 1000, (count, 12), generator=generator)
    layout = Layout.of(ids, ends, 5)
    tiles, rows = layout.ids.shape
    assert tiles * rows <= 1.15 * int((ends - 4).sum()) + rows
    for c in range(count):
        tile, turn = divmod(int(layout.places[c]), layout.ends.shape[1])
        end, length = int(layout.ends[tile, turn]), int(ends[c]) - 4
        lies = slice(end - length + 1, end + 1)
        assert torch.equal(layout.ids[tile, lies], ids[c, 5 : int(ends[c]) + 1])
        assert layout.positions[tile, lies].tolist() == list(range(5, int(ends[c]) + 1))
        seen = layout.mask[tile, 0, lies]
        assert seen[:, :5].all() and seen[:, 5:].sum() == length * (length + 1) / 2
        assert seen[:, 5:][:, lies].tril().sum() == length * (length + 1) / 2


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_kernels_equal_the_ordinary_operators(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(24, 48).to(dtype).requires_grad_(False)
    x = torch.randn(2, 5, 24, generator=generator, dtype=dtype).requires_grad_()
    assert_same(lambda: linear(layer, x), lambda: layer(x), [x])
    assert_same(lambda: quick_gelu(x), lambda: x * torch.sigmoid(1.702 * x), [x])
    # 19 pixels: the last three of each row and column are in no patch.
    convolution = torch.nn.Conv2d(3, 6, 8, stride=8).to(dtype).requires_grad_(False)
    pixels = torch.rand(2, 3, 19, 19, generator=generator, dtype=dtype).requires_grad_()
    patches = PatchEmbedding(convolution)
    assert torch.equal(patches(pixels), convolution(pixels))
    assert_same(lambda: patches(pixels), lambda: convolution(pixels), [pixels])


def test_weights_that_learn_still_get_their_gradient() -> None:
    layer, convolution = torch.nn.Linear(8, 4), torch.nn.Conv2d(3, 2, 4, stride=4)
    linear(layer, torch.ones(1, 8)).sum().backward()
    PatchEmbedding(convolution)(torch.ones(1, 3, 8, 8)).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0
    assert convolution.weight.grad is not None and convolution.weight.grad.abs().sum() > 0


def test_lowered_weights_follow_the_weights() -> None:
    layer, x = torch.nn.Linear(8, 4).requires_grad_(False), torch.ones(1, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for factor in (1.0, -2.0):
            with torch.no_grad():
                layer.weight.mul_(factor)
            assert linear(layer, x).dtype == torch.bfloat16
            assert torch.equal(linear(layer, x), layer(x))
    fresh = torch.nn.Linear(8, 4).requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.inference_mode():
            linear(fresh, x)
        linear(fresh, x.requires_grad_()).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_rounded_alike_whether_the_cpu_multiplies_it_or_not(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr(kernels, "_MULTIPLIES_BF16", native)
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(48, 64).requires_grad_(False)
    convolution = torch.nn.Conv2d(3, 6, 8, stride=8).requires_grad_(False)
    x = torch.randn(5, 48, generator=generator).requires_grad_()
    pixels = torch.rand(2, 3, 19, 19, generator=generator).requires_grad_()
    types = list[torch.dtype]()
    product, convolved = F.linear, F.conv2d
    monkeypatch.setattr(F, "linear", lambda a, *rest: types.append(a.dtype) or product(a, *rest))
    monkeypatch.setattr(F, "conv2d", lambda a, *rest, **more: types.append(a.dtype) or convolved(a, *rest, **more))
    monkeypatch.setattr(kernels, "_HAS_ONEDNN", False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear(layer, x), PatchEmbedding(convolution)(pixels)
    gradients = torch.autograd.grad([y.float().square().sum() for y in found], [x, pixels])
    assert set(types) == {torch.bfloat16 if native else torch.float32}
    monkeypatch.undo()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = layer(x), convolution(pixels)
    expected = torch.autograd.grad([y.float().square().sum() for y in wanted], [x, pixels])
    for ours, theirs in zip((*found, *gradients), (*wanted, *expected), strict=True):
        assert ours.dtype is theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=2**-7 * float(theirs.detach().abs().max()) / 8)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_bfloat16_stays_near_float32(encoders: dict, family: str) -> None:
    encoder = encoders[family, torch.float32]
    text, visual = some_tokens(2, 24, 3, torch.float32), some_tokens(3, 32, 4, torch.float32)
    ids, x = encoder.prompt_ids(NAMES, 2), torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for encode in (lambda: encoder.encode_text(ids, text), lambda: encoder.encode_image(x, visual)):
        exact = encode()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = encode()
        gradients = [
            torch.autograd.grad(y.float().square().sum(), text + visual, allow_unused=True) for y in (exact, rough)
        ]
        assert torch.cosine_similarity(exact.flatten(), rough.float().flatten(), dim=0) > 0.999
        for a, b in zip(*gradients, strict=True):
            assert a is None or (a.dtype == b.dtype and torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99)


def test_a_chunk_is_computed_again_in_its_own_precision(encoders: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoders["clip", torch.float32]
    tokens, ids = some_tokens(2, 24, 3, torch.float32), encoder.prompt_ids(NAMES, 2)
    gradients = []
    for limit in (2**30, 40_000):
        monkeypatch.setattr(huggingface, "_GRAPH_BYTES", limit)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = encoder.encode_text(ids, tokens)
        gradients.append(torch.autograd.grad(features.float().square().sum(), tokens))
    for whole, chunked in zip(*gradients, strict=True):
        assert torch.cosine_similarity(whole.flatten(), chunked.flatten(), dim=0) > 0.999
