"""The published geometries with random weights: two training steps and an evaluation on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

import apd

from .models import save_colours, save_preprocessor, save_tokenizer


def clip_vit_base_patch32(folder: Path) -> None:
    """`openai/clip-vit-base-patch32`: 12 + 12 blocks, 224 px, patch 32, context 77, quick_gelu (CLIPConfig's defaults)."""
    vocabulary = save_tokenizer(folder, True, 77)
    config = CLIPConfig()
    assert (config.vision_config.patch_size, config.vision_config.hidden_size, config.text_config.hidden_size) == (
        32,
        768,
        512,
    )
    config.text_config.eos_token_id = vocabulary["<end>"]
    CLIPModel(config).save_pretrained(folder)
    save_preprocessor(folder, 224, "clip")


def siglip_base_patch16_224(folder: Path) -> None:
    """`google/siglip-base-patch16-224`: 12 + 12 blocks of width 768, 196 patches, context 64 (SiglipConfig's defaults)."""
    vocabulary = save_tokenizer(folder, False, 64)
    config = SiglipConfig()
    assert (config.vision_config.patch_size, config.vision_config.hidden_size, config.text_config.hidden_size) == (
        16,
        768,
        768,
    )
    config.text_config.eos_token_id = config.text_config.bos_token_id = vocabulary["<end>"]
    model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(4.7)
        model.logit_bias.fill_(-12.9)
    model.save_pretrained(folder)
    save_preprocessor(folder, 224, "siglip")


@pytest.mark.slow
@pytest.mark.parametrize("geometry", [clip_vit_base_patch32, siglip_base_patch16_224])
def test_the_published_geometry_trains_two_steps_and_evaluates(tmp_path: Path, geometry: object) -> None:
    torch.manual_seed(0)
    (tmp_path / "clip").mkdir()
    geometry(tmp_path / "clip")
    images = save_colours(tmp_path / "images", per_class=6, size=64)
    clip, data = apd.load_clip(tmp_path / "clip"), apd.load_data(images, shots=1)
    method = {"name": "apd", "teacher": "online", "prompts": {"text_depth": 9, "visual_depth": 9}}
    run = apd.train(clip, data, method=method, eps="1/255", epochs=2, output=tmp_path / "run", device="cpu")
    assert run.manifest["summary"]["steps"] == 2
    moved = [not torch.equal(t, torch.zeros_like(t)) and torch.isfinite(t).all() for t in run.load_prompts().values()]
    assert all(moved) and (run.path / "prompts.safetensors").stat().st_size < 600_000
    result = apd.evaluate(apd.load_run(run.path), data, attacks=["pgd-2"], eps="1/255", checks=False)
    assert result.n == len(data.test) and 0 <= result.worst.accuracy <= result.clean
