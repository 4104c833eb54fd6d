"""Published CLIP geometries with random weights, saved as local folders: speed does not depend on what a CLIP has learned."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing

CONTEXT = 77
START, END = 49406, 49407
WORDS = 20_000
# Words a class name, ten names and over again; the longest makes "X X name ." end at token 12 of 77.
LENGTHS = (7, 1, 2, 1, 3, 2, 1, 2, 2, 3)


@dataclass(frozen=True)
class Geometry:
    """The sizes of a CLIP; heads are 64 wide in all of them."""

    name: str
    image_size: int
    patch: int
    visual_width: int
    visual_depth: int
    text_width: int
    text_depth: int
    embed_dim: int

    def image_gflop(self, tokens: int = 2) -> float:
        """GFLOP (2 x multiply-add) of one image forward with so many prompt tokens; a backward costs as much."""
        patches = (self.image_size // self.patch) ** 2
        embedding = 2 * 3 * self.patch**2 * self.visual_width * patches
        return (embedding + _tower_flop(self.visual_width, self.visual_depth, patches + 1 + tokens)) / 1e9

    def text_gflop(self, length: int) -> float:
        """GFLOP of one class prompt's forward, ``length`` tokens long; a backward costs as much."""
        return _tower_flop(self.text_width, self.text_depth, length) / 1e9


def _tower_flop(width: int, depth: int, length: int) -> float:
    return 2.0 * depth * (12 * width**2 * length + 2 * width * length**2)


GEOMETRIES = {
    geometry.name: geometry
    for geometry in (
        Geometry("vit-b-32", 224, 32, 768, 12, 512, 12, 512),
        Geometry("vit-b-16", 224, 16, 768, 12, 512, 12, 512),
        Geometry("vit-l-14", 224, 14, 1024, 24, 768, 12, 768),
        # Nobody's: the size of a CLIP for images of 32 pixels, and small enough to see within seconds that everything runs.
        Geometry("small", 32, 8, 192, 8, 128, 4, 128),
        Geometry("mini", 32, 8, 192, 4, 128, 3, 128),
    )
}


def resized(geometry: Geometry, image_size: int) -> Geometry:
    """The same towers for another image size (as many patches as fit)."""
    return replace(geometry, image_size=image_size)


def class_names(count: int) -> list[str]:
    """``count`` different names of one to seven words; ten of them hold every length."""
    return [" ".join([f"w{i}"] + ["w0"] * (LENGTHS[i % len(LENGTHS)] - 1)) for i in range(count)]


def cut_length(n_tokens: int) -> int:
    """Tokens up to the end token of the longest class prompt: start, prompt tokens, name, full stop, end."""
    return 1 + n_tokens + max(LENGTHS) + 2


def save(geometry: Geometry, folder: Path) -> Path:
    """A CLIP of this geometry with random weights, in the Hugging Face format; returns ``folder``."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    text = {
        "hidden_size": geometry.text_width,
        "intermediate_size": 4 * geometry.text_width,
        "num_hidden_layers": geometry.text_depth,
        "num_attention_heads": geometry.text_width // 64,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": START,
        "eos_token_id": END,
        "pad_token_id": END,
    }
    vision = {
        "hidden_size": geometry.visual_width,
        "intermediate_size": 4 * geometry.visual_width,
        "num_hidden_layers": geometry.visual_depth,
        "num_attention_heads": geometry.visual_width // 64,
        "image_size": geometry.image_size,
        "patch_size": geometry.patch,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=geometry.embed_dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100.0))  # as in the published weights
    model.eval().save_pretrained(folder)
    _save_tokenizer(folder)
    _save_preprocessor(folder, geometry.image_size)
    return folder


def _save_tokenizer(folder: Path) -> None:
    """A word a token, with the published special ids."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, ".": 1, "a": 2, "photo": 3, "of": 4}
    vocabulary |= {f"w{i}": 5 + i for i in range(WORDS)} | {"<start>": START, "<end>": END}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", START), ("<end>", END)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>", model_max_length=CONTEXT
    ).save_pretrained(folder)


def _save_preprocessor(folder: Path, size: int) -> None:
    record = {
        "size": {"shortest_edge": size},
        "crop_size": size,
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(record))
