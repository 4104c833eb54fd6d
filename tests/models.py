"""Small random CLIPs in the Hugging Face format, and small image folders, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, SiglipConfig, SiglipModel

WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "digit",
    "texture",
    ".",
    "red",
    "green",
    "blue",
    "dark",
    "bright",
    "cat",
    "dog",
    "piano",
    "grand",
    "one",
    "two",
    "three",
]


def save_tokenizer(folder: Path, start: bool, length: int) -> dict[str, int]:
    """A word-level tokenizer; special ids behind the words so that the end token is the largest."""
    specials = (["<start>"] if start else []) + ["<end>"]
    vocabulary = {word: i for i, word in enumerate(["<unk>", *WORDS, *specials])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    tokenizer.decoder = decoders.WordPiece()
    template = "<start> $A <end>" if start else "$A <end>"
    tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[(s, vocabulary[s]) for s in specials]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>", model_max_length=length
    )
    fast.save_pretrained(folder)
    return vocabulary


def save_preprocessor(folder: Path, size: int, family: str) -> None:
    """What `preprocessor_config.json` of the family looks like."""
    shape: dict[str, Any] = {"shortest_edge": size + 4} if family == "clip" else {"height": size, "width": size}
    record = {
        "size": shape,
        "crop_size": size,
        "resample": 3,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(record))


def save_clip(
    folder: Path,
    family: str = "clip",
    *,
    size: int = 16,
    seed: int = 0,
    eos_token_id: int | None = None,
    depths: tuple[int, int] = (3, 4),
) -> Path:
    """A random CLIP or SigLIP of a few thousand parameters; ``depths`` are the blocks of its text and image towers."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    length = 16
    vocabulary = save_tokenizer(folder, family == "clip", length)
    end = vocabulary["<end>"]
    common: dict[str, Any] = {"num_attention_heads": 2, "intermediate_size": 48}
    text = {
        **common,
        "hidden_size": 24,
        "num_hidden_layers": depths[0],
        "vocab_size": len(vocabulary),
        "max_position_embeddings": length,
        "eos_token_id": end if eos_token_id is None else eos_token_id,
        "bos_token_id": 0,
        "pad_token_id": end,
    }
    vision = {**common, "hidden_size": 32, "num_hidden_layers": depths[1], "image_size": size, "patch_size": 8}
    if family == "clip":
        clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20))
        clip.eval().save_pretrained(folder)
    else:
        siglip = SiglipModel(SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=vision))
        with torch.no_grad():
            siglip.logit_scale.fill_(2.3)
            siglip.logit_bias.fill_(-5.0)
        siglip.eval().save_pretrained(folder)
    save_preprocessor(folder, size, family)
    return folder


def save_colours(
    folder: Path, *, per_class: int = 12, size: int = 20, classes: tuple[str, ...] = ("red", "green", "blue")
) -> Path:
    """A folder of class folders: noisy images in the colour of their class; learnable within a few steps."""
    rng = np.random.default_rng(0)
    colours = {
        "red": (200, 60, 60),
        "green": (60, 200, 60),
        "blue": (60, 60, 200),
        "dark": (40, 40, 40),
        "bright": (220, 220, 220),
    }
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            noise = rng.normal(0, 40, (size, size, 3))
            pixels = np.clip(np.array(colours[name]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    return folder
