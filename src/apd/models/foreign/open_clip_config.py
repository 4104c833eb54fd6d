"""What ``open_clip_config.json`` says, as a configuration of `transformers`; what cannot be built exactly is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from apd.errors import InputError
from apd.models.checkpoint import square
from apd.models.families import CLIP, CLIPA, Family, SigLIP
from apd.models.foreign.layouts import IMAGE, SIGLIP_IMAGE, SIGLIP_TEXT, TEXT, Layout
from apd.util.text import printable, short

SUPPORTED = "open_clip's own vision and text transformers (CLIP, CLIPA) and SigLIP"

_FREE = frozenset(
    [
        "patch_dropout",
        "pos_embed_type",
        "output_tokens",
        "timm_model_pretrained",
        "timm_drop",
        "timm_drop_path",
        "attn_pooler_queries",
        "attn_pooler_heads",
        "hf_model_pretrained",
        "hf_proj_type",
        "hf_pooler_type",
        "pad_id",
        "tokenizer_kwargs",
        "hf_tokenizer_name",
    ]
)
"""Settings of training or of parts that are off, or whose tensors are in the checkpoint."""
_OFF = frozenset(
    [
        "ls_init_value",
        "attentional_pool",
        "block_type",
        "qk_norm",
        "scaled_cosine_attn",
        "scale_heads",
        "scale_attn_inner",
        "scale_attn",
        "scale_fc",
        "embed_cls",
        "hf_model_name",
        "tokenizer_mode",
        "use_pad_mask",
    ]
)
"""Settings that must be off: what they turn on is not in the towers of `transformers`."""
_READ = frozenset(
    [
        "layers",
        "width",
        "head_width",
        "heads",
        "mlp_ratio",
        "patch_size",
        "image_size",
        "no_ln_pre",
        "pool_type",
        "final_ln_after_pool",
        "act_kwargs",
        "norm_kwargs",
        "timm_model_name",
        "timm_pool",
        "timm_proj",
        "timm_proj_bias",
        "context_length",
        "vocab_size",
        "eos_id",
        "no_causal_mask",
        "proj_bias",
        "proj_type",
    ]
)
"""Settings that are looked at below."""
_TIMM_SIGLIP = re.compile(r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip_\d+")
_TANH = re.compile(r"vit_(base_patch32|large_patch16_siglip_512|so400m_patch16|giantopt)")
"""timm's SigLIP towers whose activation is approximated by tanh."""


@dataclass(frozen=True)
class Plan:
    """How a checkpoint of open_clip becomes a model.

    Args:
        config: of `transformers`.
        family: how the towers are walked.
        image, text: names of the weights.
        no_first_norm: whether the image tower lacks the layer norm before its first block.
    """

    config: Any
    family: Family
    image: Layout
    text: Layout
    no_first_norm: bool


def read_plan(model: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...]], source: str) -> Plan:
    """Make a plan of the section ``model_cfg``.

    Args:
        model: the section.
        sizes: shapes of the image tower's weights, by name; timm's towers are measured, not described.
        source: how the user calls it.

    Raises:
        InputError: an architecture that is not `SUPPORTED`.
    """
    vision, text = (_tower(model, name, source) for name in ("vision_cfg", "text_cfg"))
    if "multimodal_cfg" in model:
        raise InputError(f"{source} is a CoCa model (multimodal_cfg); supported: {SUPPORTED}.")
    build = _siglip if vision.get("timm_model_name") else _clip
    with reading_config(source):
        return build(model, vision, text, sizes, source)


@contextmanager
def reading_config(source: str) -> Iterator[None]:
    """Say of values of the wrong kind, or that are missing, that the configuration is damaged.

    Raises:
        InputError: in their place.
    """
    try:
        yield
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"{source}: open_clip_config.json is damaged: {type(error).__name__} {error}; restore it."
        ) from error


def is_other_timm(model: Mapping[str, Any], source: str) -> bool:
    """Whether the image tower is one of timm's that `transformers` does not have.

    Raises:
        InputError: sections that are not JSON objects, or with settings that are not supported.
    """
    vision, _ = (_tower(model, name, source) for name in ("vision_cfg", "text_cfg"))
    name = vision.get("timm_model_name")
    return bool(name) and _TIMM_SIGLIP.fullmatch(str(name)) is None


def _tower(model: Mapping[str, Any], name: str, source: str) -> Mapping[str, Any]:
    tower = model.get(name)
    if not isinstance(tower, Mapping):
        raise InputError(f"{source}: model_cfg.{name} in open_clip_config.json must be a JSON object; restore it.")
    known = _FREE | _OFF | _READ
    for key, value in tower.items():
        off = key in _OFF and value not in (None, False, "default")
        if off or key not in known:
            _refuse(source, f"{name}.{key}", value)
    return tower


def _refuse(source: str, key: str, value: object) -> None:
    raise InputError(
        f"{source}: {printable(key)} is {printable(short(value))}, which is not supported; supported: {SUPPORTED}."
    )


def _clip(
    model: Mapping[str, Any],
    vision: Mapping[str, Any],
    text: Mapping[str, Any],
    sizes: Mapping[str, tuple[int, ...]],
    source: str,
) -> Plan:
    from transformers import CLIPConfig

    if isinstance(vision.get("layers"), list):
        _refuse(source, "vision_cfg.layers (a ResNet)", vision["layers"])
    pooled, read = (
        (vision.get("pool_type", "tok"), bool(vision.get("final_ln_after_pool"))),
        text.get("pool_type", "argmax"),
    )
    causal = not text.get("no_causal_mask")
    if vision.get("pool_type", "tok") == "tok" and causal and read in ("argmax", "eos"):
        family: Family = CLIP()
    elif pooled == ("avg", True) and not causal and read == "last":
        family = CLIPA()
    else:
        what = f"{pooled[0]}, text_cfg.pool_type is {read}, text_cfg.no_causal_mask is {not causal}"
        raise InputError(f"{source}: vision_cfg.pool_type is {what}: together not supported; supported: {SUPPORTED}.")
    if read == "eos" and text.get("eos_id", 2) == 2:
        # For transformers a 2 stands for the largest id of a text, which is another token there.
        _refuse(source, "text_cfg.eos_id", 2)
    if text.get("proj_bias") or text.get("proj_type", "linear") != "linear":
        _refuse(source, "text_cfg.proj_bias or proj_type", text.get("proj_type", "linear"))
    quick = bool(model.get("quick_gelu"))
    side = square(vision.get("image_size", 224), "vision_cfg.image_size", source)
    width = int(vision.get("width", 768))
    config = CLIPConfig(
        vision_config={
            **_common(vision, width, int(vision.get("layers", 12)), width // int(vision.get("head_width", 64)), quick),
            "image_size": side,
            "patch_size": square(vision.get("patch_size", 16), "vision_cfg.patch_size", source),
        },
        text_config=text_config(text, quick),
        projection_dim=int(model["embed_dim"]),
    )
    return Plan(config, family, IMAGE, TEXT, bool(vision.get("no_ln_pre")))


def _siglip(
    model: Mapping[str, Any],
    vision: Mapping[str, Any],
    text: Mapping[str, Any],
    sizes: Mapping[str, tuple[int, ...]],
    source: str,
) -> Plan:
    from transformers import SiglipConfig

    name = str(vision["timm_model_name"])
    found = _TIMM_SIGLIP.fullmatch(name)
    if not found or vision.get("timm_pool") != "map" or vision.get("timm_proj") not in ("none", "", None):
        _refuse(source, "vision_cfg.timm_model_name", name)
        raise AssertionError
    for key, usual, needed in (
        ("no_causal_mask", False, True),
        ("pool_type", "argmax", "last"),
        ("proj_bias", False, True),
    ):
        if text.get(key, usual) != needed:
            _refuse(source, f"text_cfg.{key}", text.get(key, usual))
    width, patch = sizes["patch_embed.proj.weight"][0], sizes["patch_embed.proj.weight"][-1]
    depth = len({key.split(".")[1] for key in sizes if key.startswith("blocks.")})
    tanh = _TANH.match(name) is not None
    config = SiglipConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": sizes["blocks.0.mlp.fc1.weight"][0],
            "num_hidden_layers": depth,
            "num_attention_heads": 12 if found[1] == "base" else 16,
            "image_size": square(vision.get("image_size", 224), "vision_cfg.image_size", source),
            "patch_size": patch,
            "hidden_act": "gelu_pytorch_tanh" if tanh else "gelu",
            "layer_norm_eps": 1e-6,
        },
        text_config={**text_config(text, False), "projection_size": int(model["embed_dim"])},
    )
    return Plan(config, SigLIP(), SIGLIP_IMAGE, SIGLIP_TEXT, False)


def text_config(text: Mapping[str, Any], quick: bool) -> dict[str, Any]:
    """Read a text tower, as the section ``text_config`` of `transformers`; ``quick``: whether it has QuickGELU."""
    width = int(text.get("width", 512))
    return {
        **_common(text, width, int(text.get("layers", 12)), int(text.get("heads", 8)), quick),
        "vocab_size": int(text.get("vocab_size", 49408)),
        "max_position_embeddings": int(text.get("context_length", 77)),
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": int(text.get("eos_id", 2))
        if text.get("pool_type") == "eos"
        else int(text.get("vocab_size", 49408)) - 1,
    }


def _common(tower: Mapping[str, Any], width: int, layers: int, heads: int, quick: bool) -> dict[str, Any]:
    tanh = (tower.get("act_kwargs") or {}).get("approximate") == "tanh"
    return {
        "hidden_size": width,
        "intermediate_size": int(width * float(tower.get("mlp_ratio", 4.0))),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": "quick_gelu" if quick else "gelu_pytorch_tanh" if tanh else "gelu",
        "layer_norm_eps": float((tower.get("norm_kwargs") or {}).get("eps", 1e-5)),
    }
