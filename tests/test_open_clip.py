"""open_clip's models: equal to CLIP written out, equal to open_clip itself where it is installed, and refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import apd
from apd.models import DualEncoder, load_clip
from apd.models.foreign.open_clip import find_name, names
from apd.models.foreign.tokenizers import CLIP_VOCABULARY, clip_tokenizer

from .plain_clip import (
    SIDE,
    TEXT,
    VISION,
    Weights,
    image_features,
    normalised,
    quick_gelu,
    save_open_clip,
    text_features,
)
from .refusals import refused

NAMES = ["cat", "dog", "grand piano"]
HEADS = VISION["width"] // VISION["head_width"], TEXT["heads"]


def images(n: int = 3, side: int = SIDE) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(5))


def expected(encoder: DualEncoder, weights: Weights, x: Tensor, act: Any) -> tuple[Tensor, Tensor]:
    ids = encoder.prompt_ids([f"a photo of a {name}." for name in NAMES])
    processing = encoder.info.preprocessing
    image = image_features(weights, normalised(x, processing.mean, processing.std), HEADS[0], act)
    return image, text_features(weights, weights["token_embedding.weight"][ids], ids.argmax(dim=-1), HEADS[1], act)


def check_equal(encoder: DualEncoder, weights: Weights, act: Any) -> None:
    x = images()
    image, text = expected(encoder, weights, x, act)
    assert torch.allclose(encoder.encode_image(x), image, atol=1e-5, rtol=1e-5)
    ids = encoder.prompt_ids([f"a photo of a {name}." for name in NAMES])
    assert torch.allclose(encoder.encode_text(ids), text, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize(("quick", "act"), [(False, F.gelu), (True, quick_gelu)])
def test_a_folder_equals_clip_written_out(tmp_path: Path, custom: bool, quick: bool, act: Any) -> None:
    weights = save_open_clip(tmp_path / "clip", quick_gelu=quick, custom=custom)
    encoder = load_clip(tmp_path / "clip")
    check_equal(encoder, weights, act)
    other = quick_gelu if act is F.gelu else F.gelu
    assert not torch.allclose(encoder.encode_image(images()), expected(encoder, weights, images(), other)[0], atol=1e-4)
    assert encoder.info.logit_scale == pytest.approx(float(weights["logit_scale"].exp()))
    assert encoder.info.preprocessing.mean == (0.48, 0.46, 0.41)


def test_weights_as_a_pickle_of_tensors_are_read(tmp_path: Path) -> None:
    weights = save_open_clip(tmp_path / "clip")
    file = tmp_path / "clip" / "open_clip_model.safetensors"
    torch.save(weights, tmp_path / "clip" / "open_clip_pytorch_model.bin")
    sha256 = load_clip(tmp_path / "clip").info.weights_sha256
    file.unlink()
    assert load_clip(tmp_path / "clip").info.weights_sha256 == sha256


def test_apd_trains_on_it_and_the_run_finds_it_again(
    tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_open_clip(tmp_path / "clip", seed=2)
    monkeypatch.chdir(tmp_path)
    data = apd.load_data(colours, shots=2)
    run = apd.train("clip", data, method="apd", epochs=1, output=tmp_path / "run", quiet=True)
    monkeypatch.chdir(colours)
    classifier = apd.load_run(run.path)
    assert run.manifest["model"]["source"] == str(tmp_path / "clip")
    assert classifier(images()).shape == (3, 3)


def spoiled(section: str, **values: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "open_clip_config.json"
        record = json.loads(file.read_text())
        (record[section] if section in record else record["model_cfg"][section]).update(values)
        file.write_text(json.dumps(record))

    return spoil


def rewrite(folder: Path, **values: object) -> None:
    file = folder / "open_clip_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def without(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "open_clip_model.safetensors"
        save_file({key: value for key, value in load_file(file).items() if key != name}, file)

    return spoil


DAMAGED = (
    "a number that is none",
    "no width of the features",
    "a length of text that is none",
    "settings of an activation in a list",
)
REFUSED: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "a tower of timm": (
        spoiled("vision_cfg", timm_model_name="eva02_base_patch16_clip_224"),
        ["eva02_base_patch16_clip_224"],
    ),
    "a tower of MobileCLIP": (spoiled("vision_cfg", timm_model_name="fastvit_mci1"), ["fastvit_mci1"]),
    "a ResNet": (spoiled("vision_cfg", layers=[3, 4, 6, 3]), ["ResNet"]),
    "an end token of 2": (spoiled("text_cfg", pool_type="eos", eos_id=2), ["text_cfg.eos_id"]),
    "CoCa": (spoiled("model_cfg", multimodal_cfg={}), ["CoCa", "multimodal_cfg"]),
    "layer scale": (spoiled("vision_cfg", ls_init_value=0.1), ["vision_cfg.ls_init_value", "0.1"]),
    "a setting of later": (spoiled("text_cfg", rope=True), ["text_cfg.rope"]),
    "a text tower of elsewhere": (
        spoiled("text_cfg", hf_model_name="roberta-base"),
        ["text_cfg.hf_model_name", "roberta-base"],
    ),
    "a pooling of its own": (spoiled("vision_cfg", pool_type="avg"), ["vision_cfg.pool_type", "avg"]),
    "a number that is none": (spoiled("vision_cfg", width="wide"), ["open_clip_config.json", "wide"]),
    "no width of the features": (spoiled("model_cfg", embed_dim=None), ["open_clip_config.json", "damaged"]),
    "a length of text that is none": (spoiled("text_cfg", context_length="long"), ["open_clip_config.json", "long"]),
    "settings of an activation in a list": (spoiled("vision_cfg", act_kwargs=["tanh"]), ["open_clip_config.json"]),
    "preprocessing in a list": (
        lambda folder: rewrite(folder, preprocess_cfg=[1, 2]),
        ["preprocess_cfg", "must be a JSON object"],
    ),
    "other shapes": (spoiled("vision_cfg", width=48), ["48"]),
    "longest side": (spoiled("preprocess_cfg", resize_mode="longest"), ["preprocess_cfg", "longest"]),
    "pixels of 0 to 255": (spoiled("preprocess_cfg", mean=[123, 117, 104]), ["preprocess_cfg.mean", "123"]),
    "missing weights": (without("visual.proj"), ["visual_projection.weight"]),
    "no file of weights": (
        lambda folder: (folder / "open_clip_model.safetensors").unlink(),
        ["open_clip_model.safetensors"],
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_built_exactly_is_refused(case: str, tmp_path: Path) -> None:
    spoil, told = REFUSED[case]
    save_open_clip(tmp_path / "clip")
    for name in ("tokenizer_config.json",):
        (tmp_path / "clip" / name).unlink(missing_ok=True)
    spoil(tmp_path / "clip")
    with refused(str(tmp_path / "clip"), *told) as error:
        load_clip(tmp_path / "clip")
    assert case in DAMAGED or "damaged" not in str(error.value), "nothing to be restored"


def test_names_stand_for_repositories() -> None:
    assert find_name("ViT-B-32/laion2b_s34b_b79k") == ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", None)
    assert find_name("ViT-B-32/openai") == ("timm/vit_base_patch32_clip_224.openai", True)
    assert all("/" in place for tags in names().values() for place in tags.values())
    with refused("ViT-B-31", "ViT-B-32"):
        find_name("ViT-B-31/openai")
    with refused("laion3b", "ViT-B-32/laion2b_s34b_b79k"):
        find_name("ViT-B-32/laion3b")


def test_without_network_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants
    import transformers.utils.hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(transformers.utils.hub, "is_offline_mode", lambda: True)
    for name in ("open_clip:ViT-B-16/datacomp_xl_s13b_b90k", "hf-hub:nobody/nothing"):
        with refused(name, "HF_HUB_OFFLINE", "local folder"):
            load_clip(name)


def test_the_embedded_tokenizer_is_the_original_clip_s() -> None:
    """Token numbers as published in OpenAI's and open_clip's documentation and tests."""
    tokenizer = clip_tokenizer(77)
    assert len(tokenizer) == CLIP_VOCABULARY == 49408
    assert tokenizer("a photo of a cat.")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 269, 49407]
    assert tokenizer("Hello,  WORLD")["input_ids"] == [49406, 3306, 267, 1002, 49407]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 49407
