"""The model's geometry, the contrastive loss, and the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from recipes.glyphs.render import SIZE

VOCABULARY, CONTEXT = 512, 24
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""Pixels in [0, 1] are normalised as (pixels - MEAN) / STD."""


def build_model(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """A CLIP with fresh weights: 16 patches of 8 x 8 pixels and six layers of 128; three layers of 96 for text."""
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": tokenizer.bos_token_id,
            # Not 2: with 2 the library pools at the largest token id instead of the first end token.
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "projection_dim": 128,
        },
        vision_config={
            "image_size": SIZE,
            "patch_size": 8,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "projection_dim": 128,
        },
        projection_dim=128,
        logit_scale_init_value=2.6592,
    )
    return CLIPModel(config)


def encode_images(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """Unit features (B, 128) of pictures (B, 3, SIZE, SIZE) in [0, 1]."""
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (MEAN, STD))
    pooled = model.vision_model(pixel_values=(pixels - mean) / std).pooler_output
    return F.normalize(model.visual_projection(pooled), dim=-1)


def encode_texts(model: CLIPModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """Unit features (T, 128) of captions."""
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt")
    pooled = model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


def contrast(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Softmax cross-entropy of each row against all its true columns alike; rows with none are left out.

    ``logits`` and ``truth`` (bool) are (R, C). With one true column a row, it is CLIP's loss.
    """
    true = truth.sum(-1)
    scores = (F.log_softmax(logits, -1) * truth).sum(-1) / true.clamp(min=1)
    return -scores.sum() / (true > 0).sum().clamp(min=1)


def parameter_groups(model: CLIPModel) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices inside the transformer blocks, for Muon, and all the other parameters, for AdamW."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if ".layers." in name and parameter.ndim == 2 else others).append(parameter)
    return matrices, others


def optimisers(model: CLIPModel, muon_rate: float, adam_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices and AdamW for the rest."""
    matrices, others = parameter_groups(model)
    return [
        torch.optim.Muon(matrices, lr=muon_rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=adam_rate, weight_decay=0.01, betas=(0.9, 0.98)),
    ]


def trapezoid(steps: int, warmup: float = 0.03, cooldown: float = 0.5) -> Callable[[int], float]:
    """A rate factor: linear warm-up, a plateau, linear cool-down to zero; both lengths are parts of ``steps``."""

    def factor(step: int) -> float:
        return max(0.0, min(1.0, (step + 1) / (warmup * steps), (steps - step) / (cooldown * steps)))

    return factor


class Average:
    """Exponential moving average of a model's parameters."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self._parameters: list[torch.Tensor] = list(parameters)
        self._decay = decay
        self._means = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self._means, self._parameters, 1 - self._decay)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        for parameter, mean in zip(self._parameters, self._means, strict=True):
            parameter.copy_(mean)


def preprocessor() -> dict[str, Any]:
    """Contents of ``preprocessor_config.json``: a CLIPImageProcessor's settings."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def save_half(model: CLIPModel, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` in float16. ``position_ids`` are buffers the library rebuilds."""
    model.config.dtype = torch.float16
    model.config.architectures = ["CLIPModel"]
    model.config.save_pretrained(folder)
    weights = {name: parameter.detach().half().contiguous() for name, parameter in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
