"""OpenAI's files of CLIP, ``ViT-B-32.pt`` and the like: the shapes of the weights say what the model is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from apd.errors import InputError
from apd.models.families import CLIP
from apd.models.foreign.build import build_encoder
from apd.models.foreign.layouts import IMAGE, TEXT, Towers
from apd.models.foreign.open_clip import read_preprocess_cfg, state_dict
from apd.models.foreign.open_clip_config import Plan
from apd.models.foreign.tokenizers import CLIP_VOCABULARY, clip_tokenizer
from apd.util.torch_files import read_torch_file

if TYPE_CHECKING:
    from apd.models.huggingface import HuggingFaceEncoder

_HEAD = 64
"""Width of an attention head in all of OpenAI's models."""


def load_openai(source: str, file: Path, dtype: torch.dtype) -> HuggingFaceEncoder:
    """Load a file of weights with both towers, named as in OpenAI's code.

    Activation (QuickGELU), width of heads, tokenizer and preprocessing are OpenAI's, since the file does not say them.

    Args:
        source: how the user calls it.
        file: a state dictionary, or a TorchScript archive.
        dtype: type of the weights.

    Raises:
        InputError: a file without both towers, a ResNet, another vocabulary.
    """
    tensors = state_dict(read_torch_file(file, source), source)
    towers = Towers.of(tensors)
    if not towers.image or "token_embedding.weight" not in towers.text:
        whole = f"give the model that it was made from before it: --model BASE+{file.name}"
        raise InputError(f"{source} holds no whole CLIP (an image tower alone?): {whole}.")
    if not {"conv1.weight", "class_embedding"} <= towers.image.keys():
        raise InputError(f"{source}: the image tower is not a vision transformer; ResNets take no prompt tokens.")
    plan = Plan(_config(towers, source), CLIP(), IMAGE, TEXT, False)
    preprocessing = read_preprocess_cfg({}, plan.config.vision_config.image_size, source)
    tokenizer = clip_tokenizer(plan.config.text_config.max_position_embeddings)
    return build_encoder(plan, towers, tokenizer, preprocessing, source, None, dtype)


def _config(towers: Towers, source: str) -> Any:
    """Read the architecture off the shapes."""
    from transformers import CLIPConfig

    try:
        patch = towers.image["conv1.weight"].shape[-1]
        side = round((len(towers.image["positional_embedding"]) - 1) ** 0.5)
        vocabulary, context = len(towers.text["token_embedding.weight"]), len(towers.text["positional_embedding"])
        projection = towers.text["text_projection"].shape[1]
        vision, text = _tower(towers.image), _tower(towers.text)
    except (KeyError, IndexError) as error:
        raise InputError(f"{source} holds no whole CLIP: {error} is missing. Get the file again.") from error
    except TypeError as error:
        raise InputError(
            f"{source} holds no whole CLIP: a weight has no shape ({error}). Get the file again."
        ) from error
    if vocabulary != CLIP_VOCABULARY:
        raise InputError(
            f"{source}: the vocabulary has {vocabulary} tokens, OpenAI's has {CLIP_VOCABULARY}; give the model's folder."
        )
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    return CLIPConfig(
        vision_config={**vision, "image_size": side * patch, "patch_size": patch},
        text_config={**text, **ends, "vocab_size": vocabulary, "max_position_embeddings": context},
        projection_dim=projection,
    )


def _tower(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    first = tensors["transformer.resblocks.0.mlp.c_fc.weight"]
    blocks = {name.split(".")[2] for name in tensors if name.startswith("transformer.resblocks.")}
    return {
        "hidden_size": first.shape[1],
        "intermediate_size": first.shape[0],
        "num_hidden_layers": len(blocks),
        "num_attention_heads": max(1, first.shape[1] // _HEAD),
        "hidden_act": "quick_gelu",
    }
