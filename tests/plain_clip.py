"""CLIP written out from its weights under open_clip's and OpenAI's names: slow, obvious, and independent of the package."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from .models import WORDS, save_tokenizer

Weights = dict[str, Tensor]
SIDE, PATCH, EMBED = 16, 8, 20
VISION = {"width": 32, "layers": 4, "head_width": 16, "mlp_ratio": 1.5, "image_size": SIDE, "patch_size": PATCH}
TEXT = {"width": 24, "layers": 3, "heads": 2, "mlp_ratio": 2.0, "context_length": 16}


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def attention(x: Tensor, w: Weights, at: str, heads: int, mask: Tensor | None = None) -> Tensor:
    q, k, v = (x @ w[f"{at}.in_proj_weight"].T + w[f"{at}.in_proj_bias"]).chunk(3, dim=-1)
    size = x.shape[-1] // heads
    parts = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(-1, -2) / math.sqrt(size)
        scores = scores if mask is None else scores + mask
        parts.append(scores.softmax(dim=-1) @ v[..., part])
    return torch.cat(parts, dim=-1) @ w[f"{at}.out_proj.weight"].T + w[f"{at}.out_proj.bias"]


def norm(x: Tensor, w: Weights, at: str, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{at}.weight"], w[f"{at}.bias"], eps)


def block(x: Tensor, w: Weights, at: str, heads: int, act: Any, mask: Tensor | None = None) -> Tensor:
    x = x + attention(norm(x, w, f"{at}.ln_1"), w, f"{at}.attn", heads, mask)
    hidden = act(norm(x, w, f"{at}.ln_2") @ w[f"{at}.mlp.c_fc.weight"].T + w[f"{at}.mlp.c_fc.bias"])
    return x + hidden @ w[f"{at}.mlp.c_proj.weight"].T + w[f"{at}.mlp.c_proj.bias"]


def depth(w: Weights, at: str) -> int:
    return len({name.removeprefix(at).split(".")[0] for name in w if name.startswith(at)})


def image_features(
    w: Weights, x: Tensor, heads: int, act: Any, tokens: Sequence[Tensor] = (), clipa: bool = False
) -> Tensor:
    """Features (B, D) of normalised images; token rows are appended, and replaced before the blocks that have their own."""
    x = F.conv2d(x, w["visual.conv1.weight"], stride=w["visual.conv1.weight"].shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1) + w["visual.positional_embedding"]
    own = x.shape[1]
    if tokens:
        x = torch.cat([x, tokens[0].expand(len(x), -1, -1)], dim=1)
    x = x if clipa else norm(x, w, "visual.ln_pre")
    for number in range(depth(w, "visual.transformer.resblocks.")):
        if 0 < number < len(tokens):
            x = torch.cat([x[:, :own], tokens[number].expand(len(x), -1, -1)], dim=1)
        x = block(x, w, f"visual.transformer.resblocks.{number}", heads, act)
    pooled = x[:, 1:own].mean(dim=1) if clipa else x[:, 0]
    return norm(pooled, w, "visual.ln_post") @ w["visual.proj"]


def text_features(
    w: Weights, words: Tensor, ends: Tensor, heads: int, act: Any, tokens: Sequence[Tensor] = (), causal: bool = True
) -> Tensor:
    """Features (C, D) of embedded words (C, L, W), read at ``ends``; rows from 1 on are replaced where blocks have tokens."""
    x = words + w["positional_embedding"][: words.shape[1]]
    mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1) if causal else None
    for number in range(depth(w, "transformer.resblocks.")):
        if 0 < number <= len(tokens):
            rows = tokens[number - 1]
            x = torch.cat([x[:, :1], rows.expand(len(x), -1, -1), x[:, 1 + len(rows) :]], dim=1)
        x = block(x, w, f"transformer.resblocks.{number}", heads, act, mask)
    return norm(x, w, "ln_final")[torch.arange(len(x)), ends] @ w["text_projection"]


def random_weights(
    vocabulary: int, seed: int = 0, text: dict[str, Any] = TEXT, vision: dict[str, Any] = VISION
) -> Weights:
    """Weights of a small CLIP under open_clip's names."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int, scale: float = 0.2) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    def tower(at: str, width: int, layers: int, ratio: float) -> Weights:
        made: Weights = {}
        hidden = int(width * ratio)
        for number in range(layers):
            place = f"{at}transformer.resblocks.{number}"
            for name in ("ln_1", "ln_2"):
                made |= {f"{place}.{name}.weight": 1 + some(width), f"{place}.{name}.bias": some(width)}
            for name, rows, columns in (
                ("attn.in_proj", 3 * width, width),
                ("attn.out_proj", width, width),
                ("mlp.c_fc", hidden, width),
                ("mlp.c_proj", width, hidden),
            ):
                dot = "_" if name == "attn.in_proj" else "."
                made |= {f"{place}.{name}{dot}weight": some(rows, columns), f"{place}.{name}{dot}bias": some(rows)}
        return made

    wide, narrow, patch = vision["width"], text["width"], vision["patch_size"]
    patches = (vision["image_size"] // patch) ** 2
    weights = {
        "positional_embedding": some(text["context_length"], narrow),
        "text_projection": some(narrow, EMBED),
        "token_embedding.weight": some(vocabulary, narrow),
        "ln_final.weight": 1 + some(narrow),
        "ln_final.bias": some(narrow),
        "logit_scale": torch.tensor(2.5),
        "visual.class_embedding": some(wide),
        "visual.positional_embedding": some(patches + 1, wide),
        "visual.proj": some(wide, EMBED),
        "visual.conv1.weight": some(wide, 3, patch, patch),
    }
    for name in ("ln_pre", "ln_post"):
        weights |= {f"visual.{name}.weight": 1 + some(wide), f"visual.{name}.bias": some(wide)}
    weights |= tower("visual.", wide, vision["layers"], vision["mlp_ratio"])
    return weights | tower("", narrow, text["layers"], text["mlp_ratio"])


def save_open_clip(folder: Path, *, seed: int = 0, quick_gelu: bool = False, custom: bool = False) -> Weights:
    """A folder in open_clip's format; the weights as they are called in ``CLIP``, whatever the file calls them."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = save_tokenizer(folder, True, TEXT["context_length"])
    weights = random_weights(len(vocabulary), seed)
    model = {"embed_dim": EMBED, "vision_cfg": VISION, "text_cfg": {**TEXT, "vocab_size": len(vocabulary)}}
    model |= {"quick_gelu": True} if quick_gelu else {}
    model |= {"custom_text": True} if custom else {}
    record = {"model_cfg": model, "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}}
    (folder / "open_clip_config.json").write_text(json.dumps(record))
    own = ("visual.", "logit_")
    named = {(name if name.startswith(own) or not custom else f"text.{name}"): value for name, value in weights.items()}
    save_file(named, folder / "open_clip_model.safetensors")
    assert len(vocabulary) == len(WORDS) + 3
    return weights


def normalised(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
