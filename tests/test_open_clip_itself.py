"""Against the package open_clip, random weights on both sides; skipped where it is not installed.

scripts/test_open_clip.sh installs it, and torchvision, which it needs, into a folder of their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import apd
from apd.models import load_clip
from apd.models.foreign.open_clip import names
from apd.models.foreign.tokenizers import clip_tokenizer

from .models import save_tokenizer
from .plain_clip import normalised
from .refusals import refused
from .test_foreign_towers import save_clipa

open_clip = pytest.importorskip(
    "open_clip", reason="the package open_clip cannot be imported here (it needs torchvision)", exc_type=ImportError
)
TEXTS = ["a photo of a cat.", "a photo of a grand piano.", "dog"]
SMALL = {"width": 128, "layers": 3, "image_size": 32, "patch_size": 8}
TEXT = {"width": 64, "layers": 2, "heads": 4, "context_length": 77, "vocab_size": 49408}
CASES: dict[str, dict[str, Any]] = {
    "CLIP": {"embed_dim": 48, "vision_cfg": SMALL, "text_cfg": TEXT},
    "QuickGELU": {"embed_dim": 48, "vision_cfg": SMALL, "text_cfg": TEXT, "quick_gelu": True},
    "custom text": {"embed_dim": 48, "vision_cfg": SMALL, "text_cfg": TEXT, "custom_text": True},
    "other widths": {
        "embed_dim": 20,
        "vision_cfg": {**SMALL, "width": 96, "head_width": 32, "mlp_ratio": 3.0},
        "text_cfg": {**TEXT, "mlp_ratio": 2.0},
    },
    "CLIPA": {
        "embed_dim": 48,
        "vision_cfg": {**SMALL, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": {**TEXT, "pool_type": "last", "no_causal_mask": True},
    },
}


def build(folder: Path, config: dict[str, Any], tokenizer: bool = False) -> Any:
    """A model of open_clip with random weights, saved in its format."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    model = kind(**arguments).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, where a mistake would not show
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.05)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    if tokenizer:
        save_tokenizer(folder, False, 64)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return model


def check_equal(folder: Path, model: Any, x: Tensor) -> float:
    encoder = load_clip(folder)
    ids = encoder.prompt_ids(TEXTS)
    pixels = normalised(x, encoder.info.preprocessing.mean, encoder.info.preprocessing.std)
    with torch.no_grad():
        image, text = model.encode_image(pixels), model.encode_text(ids)
        own_image, own_text = encoder.encode_image(x), encoder.encode_text(ids)
    pairs = [(own_image, image), (own_text, text)]
    difference = max(float((own - other).abs().max()) for own, other in pairs)
    units = [(F.normalize(own, dim=-1), F.normalize(other, dim=-1)) for own, other in pairs]
    apart = max(float((own - other).abs().max()) for own, other in units)
    print(f"{folder.name}: largest difference {difference:.2e}, of features of unit length {apart:.2e}")
    assert all(torch.allclose(own, other, atol=1e-5, rtol=1e-5) for own, other in pairs)
    assert apart <= 1e-6
    return difference


@pytest.mark.parametrize("case", CASES)
def test_features_equal_open_clip_s(case: str, tmp_path: Path) -> None:
    model = build(tmp_path / "clip", CASES[case])
    check_equal(tmp_path / "clip", model, torch.rand(4, 3, 32, 32))


TIMM = {
    "a class token": {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_pool": "token",
        "timm_proj": "linear",
        "image_size": 224,
    },
    "EVA": {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": None, "image_size": 224},
    "MobileCLIP": {"timm_model_name": "fastvit_t8", "timm_pool": "avg", "timm_proj": None, "image_size": 256},
}


@pytest.mark.parametrize("case", TIMM)
def test_towers_of_timm_equal_open_clip_s_and_are_trained(case: str, tmp_path: Path, colours: Path) -> None:
    config = {"embed_dim": 48, "vision_cfg": TIMM[case], "text_cfg": TEXT, "custom_text": True}
    model = build(tmp_path / "clip", config)
    side = TIMM[case]["image_size"]
    check_equal(tmp_path / "clip", model, torch.rand(2, 3, side, side))
    data = apd.load_data(colours, shots=1)
    method = {"name": "apd", "teacher": "frozen", "prompts": {"visual_tokens": 0}}
    options: Any = {"epochs": 1, "batch_size": 2, "attack": {"steps": 1}, "quiet": True}
    run = apd.train(str(tmp_path / "clip"), data, method=method, output=tmp_path / "run", **options)
    assert apd.load_run(run.path)(torch.rand(1, 3, side, side)).shape == (1, 3)
    assert TIMM[case]["timm_model_name"] in run.manifest["model"]["architecture"]
    with refused("visual_tokens=0"):
        apd.train(str(tmp_path / "clip"), data, method="vpt", output=tmp_path / "other", **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16-SigLIP", "ViT-B-32-SigLIP2-256"])
def test_published_architectures_equal_open_clip_s(name: str, tmp_path: Path) -> None:
    config = open_clip.get_model_config(name)
    siglip = "SigLIP" in name
    model = build(tmp_path / name, config, tokenizer=siglip)
    side = config["vision_cfg"]["image_size"]
    check_equal(tmp_path / name, model, torch.rand(2, 3, side, side))


def test_a_model_of_open_clip_is_trained(tmp_path: Path, colours: Path) -> None:
    build(tmp_path / "clip", CASES["custom text"])
    run = apd.train(
        str(tmp_path / "clip"),
        apd.load_data(colours, shots=1),
        epochs=1,
        batch_size=2,
        output=tmp_path / "run",
        quiet=True,
    )
    assert run.finished and apd.load_run(run.path)(torch.rand(1, 3, 32, 32)).shape == (1, 3)


def test_the_tokenizer_is_open_clip_s() -> None:
    theirs, own = open_clip.SimpleTokenizer(context_length=77), clip_tokenizer(77)
    for text in [*TEXTS, "Ærøskøbing's  café -- 3.14 & <tag> 東京 🙂", "a_b\tc\n d"]:
        ids = theirs([text])[0]
        assert own(text)["input_ids"] == ids[: int(ids.argmax()) + 1].tolist(), text


def test_the_table_of_names_is_open_clip_s() -> None:
    """Our table may be older than theirs, but says nothing else."""
    from open_clip.pretrained import get_pretrained_cfg

    for model, tags in names().items():
        for tag, place in tags.items():
            config = get_pretrained_cfg(model, tag)
            assert config["hf_hub"].rstrip("/") == place.removesuffix(":quick_gelu")
            assert bool(config.get("quick_gelu")) == place.endswith(":quick_gelu")


def test_open_clip_reads_the_folders_of_the_other_tests(tmp_path: Path) -> None:
    """What stands in for open_clip's format where it is not installed is that format."""
    save_clipa(tmp_path / "delta")
    file = tmp_path / "delta" / "open_clip_config.json"
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'delta'}")
    assert json.loads(file.read_text())["model_cfg"]["embed_dim"] == model.visual.proj.shape[1]
    check_equal(tmp_path / "delta", model.eval(), torch.rand(4, 3, 16, 16))
