"""OpenAI's files, and fine-tuned towers in the forms in which FARE, TeCoA, LEAF and DeltaCLIP publish them."""

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
from apd.models import load_clip
from apd.models.classifier import PromptedCLIP
from apd.models.foreign.tokenizers import CLIP_VOCABULARY, clip_tokenizer

from .models import save_clip, save_tokenizer
from .plain_clip import (
    EMBED,
    SIDE,
    TEXT,
    VISION,
    Weights,
    image_features,
    normalised,
    quick_gelu,
    random_weights,
    save_open_clip,
    text_features,
)
from .refusals import refused

OPENAI_VISION = {**VISION, "width": 64, "layers": 2}
OPENAI_TEXT = {**TEXT, "width": 64, "layers": 2, "context_length": 77}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def images(n: int = 2) -> Tensor:
    return torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


def visual(weights: Weights) -> Weights:
    return {name: value for name, value in weights.items() if name.startswith("visual.")}


def bare(weights: Weights) -> Weights:
    return {name.removeprefix("visual."): value for name, value in visual(weights).items()}


class Holder(torch.nn.Module):
    """A module with given weights, for TorchScript."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        for name, value in weights.items():
            at: torch.nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in dict(at.named_children()):
                    at.add_module(part, torch.nn.Module())
                at = getattr(at, part)
            at.register_buffer(last, value)

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture(scope="module")
def openai() -> Weights:
    weights = random_weights(CLIP_VOCABULARY, 1, OPENAI_TEXT, OPENAI_VISION)
    return {name: value.half().float() for name, value in weights.items()}


@pytest.mark.parametrize("form", ["state dict", "half precision", "TorchScript", "checkpoint"])
def test_openai_s_files_equal_clip_written_out(form: str, tmp_path: Path, openai: Weights) -> None:
    file, sizes = tmp_path / "ViT-B-32.pt", {"input_resolution": torch.tensor(SIDE), "context_length": torch.tensor(77)}
    if form == "TorchScript":
        torch.jit.save(torch.jit.script(Holder({**openai, **sizes})), file)
    elif form == "checkpoint":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in openai.items()}}, file)
    else:
        held = {name: value.half() if form == "half precision" else value for name, value in openai.items()}
        torch.save({**held, **sizes}, file)
    encoder = load_clip(file)
    ids = encoder.prompt_ids(["a photo of a cat.", "a photo of a grand piano."])
    x = images()
    image = image_features(openai, normalised(x, MEAN, STD), 1, quick_gelu)
    text = text_features(openai, openai["token_embedding.weight"][ids], ids.argmax(dim=-1), 1, quick_gelu)
    assert torch.allclose(encoder.encode_image(x), image, atol=1e-5, rtol=1e-5)
    assert torch.allclose(encoder.encode_text(ids), text, atol=1e-5, rtol=1e-5)
    assert encoder.info.context_length == 77


def test_openai_s_file_is_the_model_that_transformers_converted(tmp_path: Path, openai: Weights) -> None:
    """A run on one form of the weights is found on the other: weights and tokenizer have the same hash."""
    from transformers import CLIPModel

    torch.save(openai, tmp_path / "clip.pt")
    one = load_clip(tmp_path / "clip.pt")
    folder = tmp_path / "folder"
    model = CLIPModel(one.model.config)
    model.load_state_dict(one.model.state_dict())
    model.save_pretrained(folder)
    clip_tokenizer(77).save_pretrained(folder)
    processor = {
        "size": {"shortest_edge": SIDE},
        "crop_size": SIDE,
        "resample": 3,
        "image_mean": MEAN,
        "image_std": STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    other = load_clip(folder)
    assert (one.info.weights_sha256, one.info.tokenizer_sha256) == (
        other.info.weights_sha256,
        other.info.tokenizer_sha256,
    )
    assert one.info.preprocessing == other.info.preprocessing


def test_half_a_file_of_openai_is_refused(tmp_path: Path, openai: Weights) -> None:
    torch.save(bare(openai), tmp_path / "tower.pt")
    with refused("tower.pt", "BASE+tower.pt"):
        load_clip(tmp_path / "tower.pt")
    torch.save({name: value for name, value in openai.items() if name != "visual.proj"}, tmp_path / "cut.pt")
    with refused("cut.pt", "visual_projection.weight"):
        load_clip(tmp_path / "cut.pt")
    with refused("missing.pt"):
        load_clip("missing.pt")


def as_transformers(weights: Weights, tmp_path: Path) -> Weights:
    """What `CLIPVisionModelWithProjection` or a whole `CLIPModel` saves."""
    folder = tmp_path / "tuned"
    save_open_clip(folder, seed=9)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "open_clip_model.safetensors")
    state: Weights = load_clip(folder).model.state_dict()
    return {
        name: value.clone() for name, value in state.items() if name.startswith(("vision_model.", "visual_projection."))
    }


FORMS: dict[str, Callable[[Weights, Path], Any]] = {
    "FARE: the image tower alone": lambda w, _: bare(w),
    "FARE: with visual. before the names": lambda w, _: visual(w),
    "TeCoA: the entry of a checkpoint": lambda w, _: {
        "epoch": 9,
        "best_acc1": torch.tensor(50.0),
        "state_dict": {"prompt": torch.ones(3)},
        "vision_encoder_state_dict": bare(w),
    },
    "in several processes": lambda w, _: {f"module.{name}": value for name, value in bare(w).items()},
    "a wrapper": lambda w, _: {f"model.{name}": value for name, value in visual(w).items()},
    "half precision": lambda w, _: {name: value.half() for name, value in bare(w).items()},
    "LEAF and others: transformers": as_transformers,
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("form", FORMS)
def test_a_tower_is_put_into_its_base(form: str, suffix: str, tmp_path: Path) -> None:
    base = save_open_clip(tmp_path / "base", seed=0)
    tuned = {name: value.half().float() for name, value in save_open_clip(tmp_path / "other", seed=1).items()}
    content, file = FORMS[form](tuned, tmp_path), tmp_path / f"tower{suffix}"
    if suffix == ".safetensors":
        if not all(isinstance(value, Tensor) for value in content.values()):
            pytest.skip("safetensors holds tensors alone")
        save_file({name: value.contiguous() for name, value in content.items()}, file)
    else:
        torch.save(content, file)
    name = f"{tmp_path / 'base'}+{file}"
    encoder, plain = load_clip(name), load_clip(tmp_path / "base")
    x = normalised(images(), plain.info.preprocessing.mean, plain.info.preprocessing.std)
    assert torch.allclose(encoder.encode_image(images()), image_features(tuned, x, 2, F.gelu), atol=1e-5, rtol=1e-5)
    assert torch.allclose(plain.encode_image(images()), image_features(base, x, 2, F.gelu), atol=1e-5, rtol=1e-5)
    ids = encoder.prompt_ids(["a cat.", "a dog."])
    assert torch.equal(encoder.encode_text(ids), plain.encode_text(ids))
    assert encoder.info.source == name and encoder.info.weights_sha256 != plain.info.weights_sha256


def test_a_tower_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    weights = save_open_clip(tmp_path / "base")
    cases: dict[str, tuple[Weights, list[str]]] = {
        "wide": (bare(random_weights(30, vision=OPENAI_VISION)), ["64"]),
        "deep": (bare(random_weights(30, vision={**VISION, "layers": 5})), ["encoder.layers.4"]),
        "flat": (bare(random_weights(30, vision={**VISION, "layers": 3})), ["encoder.layers.3"]),
        "side": (bare(random_weights(30, vision={**VISION, "image_size": 24})), ["(10, 32)", "(5, 32)"]),
        "cut": ({name: value for name, value in bare(weights).items() if name != "proj"}, ["visual_projection.weight"]),
        "odd": ({"fc.weight": torch.ones(2, 2)}, ["fc.weight"]),
        "half": (
            as_transformers(weights, tmp_path) | {"text_model.final_layer_norm.bias": torch.ones(24)},
            ["text tower"],
        ),
        "nan": ({name: value * torch.nan for name, value in bare(weights).items()}, ["finite"]),
    }
    for name, (content, told) in cases.items():
        torch.save(content, tmp_path / f"{name}.pt")
        with refused(f"{name}.pt", *told):
            load_clip(f"{tmp_path / 'base'}+{tmp_path / name}.pt")
    with refused("nothing.pt"):
        load_clip(f"{tmp_path / 'base'}+nothing.pt")


def test_fare_form_weights_teach_and_learn(tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published tower as the teacher of a plain CLIP, and as the student's own; runs find it from anywhere."""
    base = save_clip(tmp_path / "base")
    tuned = {**VISION, "layers": 4}
    torch.save(bare(random_weights(30, 4, vision=tuned)), tmp_path / "fare.pt")
    monkeypatch.chdir(tmp_path)
    data = apd.load_data(colours, shots=2)
    method = {"name": "apd", "teacher": "frozen", "teacher_model": "base+fare.pt"}
    run = apd.train("base", data, method=method, epochs=1, output=tmp_path / "taught", quiet=True)
    plain = apd.train(
        "base", data, method={**method, "teacher_model": None}, epochs=1, output=tmp_path / "plain", quiet=True
    )
    taught, own = run.load_prompts(), plain.load_prompts()
    assert any(not torch.equal(taught[name], own[name]) for name in own)
    monkeypatch.chdir(colours)
    (teacher,) = run.manifest["teachers"].values()
    assert teacher["source"] == f"{base}+{tmp_path / 'fare.pt'}"
    assert teacher["weights_sha256"] == load_clip(teacher["source"]).info.weights_sha256
    student = apd.train(teacher["source"], data, method="advvlp", epochs=1, output=tmp_path / "student", quiet=True)
    assert apd.load_run(student.path)(images()).shape == (2, 3)


def save_clipa(folder: Path) -> Weights:
    """DeltaCLIP's form: CLIPA's towers and BERT's kind of tokenizer in open_clip's format."""
    weights = save_open_clip(folder)
    file = folder / "open_clip_config.json"
    record = json.loads(file.read_text())
    record["model_cfg"]["vision_cfg"] |= {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    text = {
        "pool_type": "last",
        "no_causal_mask": True,
        "hf_tokenizer_name": "x",
        "tokenizer_kwargs": {"clean": "lower"},
    }
    record["model_cfg"]["text_cfg"] |= text
    record["preprocess_cfg"] |= {"interpolation": "bilinear", "resize_mode": "squash"}
    file.write_text(json.dumps(record))
    kept = {name: value for name, value in weights.items() if not name.startswith("visual.ln_pre")}
    save_file(kept, folder / "open_clip_model.safetensors")
    return weights


def test_delta_clip_s_form_equals_clipa_written_out(tmp_path: Path, colours: Path) -> None:
    weights = save_clipa(tmp_path / "delta")
    encoder = load_clip(tmp_path / "delta")
    processing, x = encoder.info.preprocessing, images()
    assert (processing.mode, processing.interpolation, encoder.info.causal_text) == ("squash", "bilinear", False)
    image = image_features(weights, normalised(x, processing.mean, processing.std), 2, F.gelu, clipa=True)
    assert torch.allclose(encoder.encode_image(x), image, atol=1e-5, rtol=1e-5)
    ids = encoder.prompt_ids(["a Photo of a cat.", "a dog."])
    last = torch.full((2,), ids.shape[1] - 1)
    text = text_features(weights, weights["token_embedding.weight"][ids], last, 2, F.gelu, causal=False)
    assert torch.allclose(encoder.encode_text(ids), text, atol=1e-5, rtol=1e-5)
    run = apd.train(encoder, apd.load_data(colours, shots=2), epochs=1, output=tmp_path / "run", quiet=True)
    assert apd.load_run(run.path)(x).shape == (2, 3)


def test_the_separator_of_bert_becomes_padding(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    from apd.models.foreign.tokenizers import clean_as, strip_separator

    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog"])}
    backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    bert = PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]")
    strip_separator(bert, "it")
    clean_as(bert, "canonicalize", "it")
    assert bert("a, CAT_dog!")["input_ids"] == [2, 4, 5, 6, 0]
    with refused("it", "nonsense"):
        clean_as(bert, "nonsense", "it")


def test_tiny_clip_s_geometry_equals_transformers(tmp_path: Path, colours: Path) -> None:
    """TinyCLIP is a CLIP of other widths: towers of unequal depth, a narrow projection, a text tower of three blocks."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path / "tiny"
    folder.mkdir()
    vocabulary = save_tokenizer(folder, True, 77)
    end = vocabulary["<end>"]
    text = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 256, "num_hidden_layers": 3}
    text |= {"vocab_size": len(vocabulary), "max_position_embeddings": 77, "eos_token_id": end, "bos_token_id": 0}
    vision = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512, "num_hidden_layers": 5}
    vision |= {"image_size": SIDE, "patch_size": 4}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=48)).eval()
    model.save_pretrained(folder)
    record = {"size": {"shortest_edge": SIDE}, "crop_size": SIDE, "resample": 3, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(record))
    encoder = load_clip(folder)
    x, ids = images(), encoder.prompt_ids(["a photo of a cat.", "dog"])
    with torch.no_grad():
        image = model.get_image_features(normalised(x, MEAN, STD)).pooler_output
        text_ = model.get_text_features(ids, attention_mask=torch.ones_like(ids)).pooler_output
    assert torch.allclose(encoder.encode_image(x), image, atol=1e-5)
    assert torch.allclose(encoder.encode_text(ids), text_, atol=1e-5)
    run = apd.train(encoder, apd.load_data(colours, shots=2), epochs=1, output=tmp_path / "run", quiet=True)
    assert isinstance(apd.load_run(run.path), PromptedCLIP)
    assert load_file(run.path / "prompts.safetensors")["visual_tokens.0"].shape[1] == 128
    assert EMBED != 48
