"""The encoder: the untouched model's without prompts, exact where it is cut, and clear where it cannot be loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from apd.models import DualEncoder, load_clip

from .models import save_clip
from .refusals import meant, refused

TEXTS = ["a photo of a cat.", "a photo of a grand piano.", "dog"]


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_features_are_those_of_the_untouched_model(family: str, request: pytest.FixtureRequest) -> None:
    """Text to the bit; images and the gradients of their pixels up to rounding, because of other kernels."""
    encoder: DualEncoder = request.getfixturevalue(family)
    model = encoder.model
    x = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ids = encoder.prompt_ids(TEXTS)
    mean, std = torch.tensor([0.48, 0.46, 0.41]).view(3, 1, 1), torch.tensor([0.27, 0.26, 0.28]).view(3, 1, 1)
    x.requires_grad_()
    ours, theirs = encoder.encode_image(x), model.get_image_features(pixel_values=(x - mean) / std).pooler_output
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    towards = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    pixels = [torch.autograd.grad((features * towards).sum(), x)[0] for features in (ours, theirs)]
    assert pixels[1].abs().max() > 1e-3
    torch.testing.assert_close(pixels[0], pixels[1], rtol=1e-4, atol=1e-6)
    assert torch.equal(encoder.encode_text(ids), model.get_text_features(input_ids=ids).pooler_output)


def test_pooling_follows_the_historical_end_token(tmp_path: Path) -> None:
    encoder = load_clip(save_clip(tmp_path / "old", eos_token_id=2))
    ids = encoder.prompt_ids(TEXTS)
    assert torch.equal(encoder.encode_text(ids), encoder.model.get_text_features(input_ids=ids).pooler_output)


def test_trimmed_text_gives_the_same_features(clip: DualEncoder, siglip: DualEncoder) -> None:
    ids = clip.prompt_ids(TEXTS)
    assert clip.trim(ids).shape[1] < ids.shape[1]
    torch.testing.assert_close(clip.encode_text(clip.trim(ids)), clip.encode_text(ids), rtol=1e-5, atol=1e-6)
    # SigLIP pools at the last position and attends in both directions: nothing can be cut.
    assert torch.equal(siglip.trim(siglip.prompt_ids(TEXTS)), siglip.prompt_ids(TEXTS))


def test_word_states_reproduce_the_written_prompt(clip: DualEncoder) -> None:
    states = clip.word_states("a photo of a", 4)
    assert [tuple(s.shape) for s in states] == [(4, 24)] * 3
    prompted = clip.encode_text(clip.prompt_ids(["cat.", "dog."], 4), states)
    written = clip.encode_text(clip.prompt_ids(["a photo of a cat.", "a photo of a dog."]))
    torch.testing.assert_close(prompted, written, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_tokens_enter_where_the_literature_puts_them(family: str, request: pytest.FixtureRequest) -> None:
    """Against a second walk through the model's own modules, written the long way: one sample, loops, no helper."""
    encoder: DualEncoder = request.getfixturevalue(family)
    generator = torch.Generator().manual_seed(1)
    visual = [torch.randn(2, 32, generator=generator) for _ in range(3)]
    x = torch.rand(1, 3, 16, 16, generator=generator)
    tower = encoder.model.vision_model
    h = torch.cat([tower.embeddings((x - encoder.mean) / encoder.std)[0], visual[0]])
    if family == "clip":
        h = tower.pre_layrnorm(h)
    patches = len(h) - 2
    for depth, block in enumerate(tower.encoder.layers):
        if depth in (1, 2):
            h = torch.stack([*h[:patches], *visual[depth]])
        h = block(h[None], None)[0]
    if family == "clip":
        wanted = encoder.model.visual_projection(tower.post_layernorm(h[0]))
    else:
        wanted = tower.head(tower.post_layernorm(h[:patches])[None])[0]
    torch.testing.assert_close(encoder.encode_image(x, visual)[0], wanted, rtol=1e-5, atol=1e-6)


def test_text_tokens_replace_the_rows_behind_the_start_token(clip: DualEncoder) -> None:
    ids = clip.prompt_ids(["cat."], 2)
    text = clip.model.text_model
    tokens = [torch.full((2, 24), 0.3), torch.full((2, 24), -0.2)]
    words = text.embeddings.token_embedding(ids).clone()
    words[0, 1], words[0, 2] = tokens[0]
    h = words + text.embeddings.position_embedding.weight[: ids.shape[1]]
    mask = torch.full((16, 16), -torch.inf).triu(1)[None, None]
    for depth, block in enumerate(text.encoder.layers):
        if depth == 1:
            h[0, 1], h[0, 2] = tokens[1]
        h = block(h, mask)
    end = ids[0].tolist().index(clip.tokenizer.eos_token_id)
    wanted = clip.model.text_projection(text.final_layer_norm(h)[0, end])
    torch.testing.assert_close(clip.encode_text(ids, tokens)[0], wanted, rtol=1e-5, atol=1e-6)


def test_info_reads_the_checkpoint(clip: DualEncoder, siglip: DualEncoder) -> None:
    assert (clip.info.family, clip.info.causal_text, clip.info.context_length) == ("clip", True, 16)
    assert clip.info.preprocessing.mode == "crop" and clip.info.preprocessing.resize == 20
    assert siglip.info.preprocessing.mode == "squash"
    assert siglip.info.logit_bias == pytest.approx(-5.0) and siglip.info.logit_scale == pytest.approx(9.974, abs=1e-3)
    assert (clip.info.text_depth, clip.info.visual_depth, clip.info.embed_dim) == (3, 4, 20)


def test_preprocessing_is_the_family_s_own(clip: DualEncoder, siglip: DualEncoder) -> None:
    """CLIP resizes the short side and crops; SigLIP squashes. Against transformers' own PIL processor."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}, do_rescale=False, do_normalize=False
    )
    for size in ((50, 31), (31, 50), (64, 48), (33, 32), (500, 375), (20, 20), (16, 17)):
        image = Image.effect_noise(size, 60).convert("RGB")
        ours = torch.tensor(list(clip.info.preprocessing.apply(image).tobytes())).view(16, 16, 3)
        theirs = torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"])[0].permute(1, 2, 0)
        assert torch.equal(ours.float(), theirs.float()), size
    assert siglip.info.preprocessing.apply(image).size == (16, 16)


def test_half_precision_checkpoints_load_as_float32(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "half")
    CLIPModel.from_pretrained(folder).half().save_pretrained(folder)
    assert load_clip(folder).encode_image(torch.rand(1, 3, 16, 16)).dtype == torch.float32
    assert next(load_clip(folder, dtype=torch.float64).parameters()).dtype == torch.float64


def test_weights_and_tokenizer_have_fingerprints(clip: DualEncoder, clip_folder: Path, tmp_path: Path) -> None:
    assert load_clip(clip_folder).info.weights_sha256 == clip.info.weights_sha256
    other = load_clip(save_clip(tmp_path / "other", seed=1))
    assert other.info.weights_sha256 != clip.info.weights_sha256
    assert other.info.tokenizer_sha256 == clip.info.tokenizer_sha256


def test_wrong_sources_are_clear_errors(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("glyph", meant("glyphs")):
        load_clip("glyph")
    (tmp_path / "empty").mkdir()
    with refused(str(tmp_path / "empty"), "config.json"):
        load_clip(tmp_path / "empty")
    broken = tmp_path / "broken"
    shutil.copytree(clip_folder, broken)
    (broken / "model.safetensors").write_bytes(b"not weights")
    with refused(str(broken), "model.safetensors"):
        load_clip(broken)
    other = tmp_path / "bert"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with refused(str(other), "bert", "clip", "siglip"):
        load_clip(other)
    bare = tmp_path / "bare"
    shutil.copytree(clip_folder, bare)
    (bare / "preprocessor_config.json").unlink()
    with refused(str(bare), "preprocessor_config.json"):
        load_clip(bare)
    for text, reason in (('{"size": ', "line 1 column 10"), ("[]", "JSON object"), ("{}", "image_mean")):
        (bare / "preprocessor_config.json").write_text(text)
        with refused("preprocessor_config.json", reason):
            load_clip(bare)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused("nobody/no-such-clip", "HF_HUB_OFFLINE", "--model glyphs"):
        load_clip("nobody/no-such-clip")


def test_missing_weights_are_an_error(clip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "missing"
    shutil.copytree(clip_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with refused(str(folder), "visual_projection.weight"):
        load_clip(folder)


def test_wrong_pixels_and_long_texts_are_refused(clip: DualEncoder) -> None:
    with refused("(batch, 3, 16, 16)", "(1, 3, 32, 32)"):
        clip.encode_image(torch.rand(1, 3, 32, 32))
    with refused("torch.uint8", "255"):
        clip.encode_image(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with refused("cat cat", "22", "16"):
        clip.prompt_ids(["cat " * 20])


def test_the_encoder_stays_frozen_and_in_evaluation_mode(clip: DualEncoder) -> None:
    assert not any(p.requires_grad for p in clip.parameters())
    assert not clip.train().training and not clip.model.training
