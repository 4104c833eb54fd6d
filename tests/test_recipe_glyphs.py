"""The embedded model's recipe: strokes, pictures, captions, and a training step that learns."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

for _needed in (
    "HersheyFonts",
    "font_roboto",
    "font_source_sans_pro",
    "font_caladea",
    "font_fredoka_one",
    "font_amatic_sc",
):
    pytest.importorskip(_needed, reason="pip install -r recipes/glyphs/requirements.txt")
sys.path.insert(0, str(Path(__file__).parents[1]))

from recipes.glyphs import captions, masks, model, render, strokes, train  # noqa: E402


@pytest.fixture(scope="module")
def pool() -> masks.Pool:
    return masks.build_pool(seed=0, widths=1, drawings=2)


@pytest.fixture(scope="module")
def tokenizer():
    return captions.train_tokenizer(model.VOCABULARY, model.CONTEXT)


def test_a_spline_passes_through_its_control_points() -> None:
    points = np.asarray([(0.0, 0.0), (1.0, 0.5), (0.2, 1.0)])
    curve = strokes.spline(points, steps=8)
    assert curve.shape == (17, 2)
    np.testing.assert_allclose(curve[::8], points, atol=1e-12)


def test_strokes_that_meet_still_meet_after_jitter() -> None:
    line, curve = strokes.draw_digit(strokes.DIGITS["5"][0], 0.1, np.random.default_rng(0))
    np.testing.assert_array_equal(line[-1], curve[0])


def test_every_identity_has_masks_that_fill_the_box(pool: masks.Pool) -> None:
    assert set(pool.identities.tolist()) == set(range(len(captions.GLYPHS)))
    assert pool.masks.dtype == torch.uint8
    margin = (masks.CANVAS - masks.BOX) // 2
    inked = pool.masks > 64
    assert not inked[:, :margin].any() and not inked[:, :, :margin].any()
    assert inked.flatten(1).any(1).all()


def test_pictures_are_a_function_of_the_seed(pool: masks.Pool) -> None:
    first, second, other = (render.Renderer(pool, seed).sample(32) for seed in (3, 3, 4))
    assert torch.equal(first.pixels, second.pixels) and torch.equal(first.attributes, second.attributes)
    assert not torch.equal(first.pixels, other.pixels)


def test_pictures_have_the_promised_shape_range_and_contrast(pool: masks.Pool) -> None:
    batch = render.Renderer(pool, 0).sample(256)
    assert batch.pixels.shape == (256, 3, render.SIZE, render.SIZE)
    assert batch.pixels.min() >= 0 and batch.pixels.max() <= 1
    assert batch.attributes.shape == (256, 5)
    assert (batch.attributes[:, 1] != batch.attributes[:, 2]).all()
    spread = batch.pixels.flatten(2).amax(-1) - batch.pixels.flatten(2).amin(-1)
    assert (spread.amax(-1) > 0.15).float().mean() > 0.97


def test_half_of_the_samples_are_digits(pool: masks.Pool) -> None:
    weights = render.mask_weights(pool)
    digits = pool.identities < 10
    torch.testing.assert_close(weights[digits].sum() / weights.sum(), torch.tensor(0.5))


def test_a_scan_keeps_at_most_the_coarse_grid() -> None:
    mask = (torch.rand(2, 1, render.SIZE, render.SIZE, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    scanned = render.scan(mask)
    assert scanned.shape == mask.shape
    assert scanned.std() < 0.3 < mask.std()


def test_captions_take_the_right_article() -> None:
    assert [captions.with_article(noun) for noun in ("seven", "eight", "one", "uppercase B", "8")] == [
        "a seven",
        "an eight",
        "a one",
        "an uppercase B",
        "an 8",
    ]


def test_a_detailed_caption_says_only_what_is_true() -> None:
    generator = torch.Generator().manual_seed(0)
    row = torch.tensor([7, captions.COLOUR_NAMES.index("red"), captions.COLOUR_NAMES.index("blue"), 1, 0])
    for _ in range(50):
        text, said = captions.detailed_caption(row, generator)
        assert captions.truth(said[None], row[None]).item()
        assert "seven" in text or "7" in text
        assert ("red" in text) == (said[1] != captions.UNSAID)
        assert ("blue background" in text) == (said[2] != captions.UNSAID)
        assert "blurry" not in text


def test_a_caption_is_false_of_another_colour() -> None:
    said = torch.tensor([[7, 2, captions.UNSAID, captions.UNSAID, captions.UNSAID]])
    pictures = torch.tensor([[7, 2, 0, 0, 1], [7, 3, 0, 0, 1], [6, 2, 0, 0, 1]])
    assert captions.truth(said, pictures).flatten().tolist() == [True, False, False]


def test_the_tokenizer_wraps_pads_and_fits(tokenizer, tmp_path: Path) -> None:
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokens = tokenizer(["a photo of the digit seven.", "seven"], padding=True)["input_ids"]
    assert tokens[0][0] == tokens[1][0] == start
    assert tokens[0][-1] == end and tokens[1][2:] == [end] * (len(tokens[1]) - 2)
    assert end != 2 and len(tokenizer) <= 1024
    assert max(map(len, tokenizer(captions.corpus(draws=20))["input_ids"])) <= model.CONTEXT
    captions.save_tokenizer(tokenizer, tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"


def test_the_contrast_of_one_true_column_is_cross_entropy() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 6, 2, 2])
    truth = labels[:, None] == torch.arange(7)
    torch.testing.assert_close(model.contrast(logits, truth), torch.nn.functional.cross_entropy(logits, labels))


def test_rows_without_a_true_column_do_not_count() -> None:
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    truth = torch.tensor([[True, False, False], [False, False, False]])
    torch.testing.assert_close(model.contrast(logits, truth), model.contrast(logits[:1], truth[:1]))


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    factor = model.trapezoid(100, warmup=0.1, cooldown=0.5)
    assert [factor(0), factor(20), factor(75), factor(100)] == [0.1, 1.0, 0.5, 0.0]


def test_training_steps_lower_the_loss_and_the_folder_loads(pool: masks.Pool, tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, CLIPModel

    torch.manual_seed(0)
    clip = model.build_model(tokenizer)
    batch = render.Renderer(pool, 0).sample(32)
    steppers = model.optimisers(clip, 4e-3, 2e-3)
    losses = []
    for _ in range(6):
        loss, _ = train.batch_loss(clip, tokenizer, batch, 8, torch.Generator().manual_seed(0))
        loss.backward()
        for optimiser in steppers:
            optimiser.step()
            optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    train.save(clip.eval(), tokenizer, tmp_path)
    loaded = CLIPModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        kept, read = model.encode_images(clip, batch.pixels), model.encode_images(loaded, batch.pixels)
        again = model.encode_texts(loaded, AutoTokenizer.from_pretrained(tmp_path), ["a photo of a 7."])
        before = model.encode_texts(clip, tokenizer, ["a photo of a 7."])
    torch.testing.assert_close(read, kept, atol=5e-3, rtol=0)
    torch.testing.assert_close(again, before, atol=5e-3, rtol=0)
