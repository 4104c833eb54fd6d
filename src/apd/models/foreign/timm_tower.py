"""open_clip's models with other image towers of timm, such as EVA and MobileCLIP: text tokens alone, where timm is installed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from apd.errors import InputError
from apd.models.encoder import DualEncoder, Tokens
from apd.models.families import CLIP
from apd.models.foreign.layouts import TEXT, Tensors, Towers
from apd.models.foreign.open_clip_config import SUPPORTED, reading_config, text_config
from apd.models.huggingface import HuggingFaceEncoder, check_values
from apd.models.preprocessing import Preprocessing
from apd.util.extras import install_command
from apd.util.tensors import sha256_of_weights
from apd.util.text import one_line, printable

_TIMM = ("timm_model_name", "timm_pool", "timm_proj")
"""What of a section ``vision_cfg`` decides how an image tower of timm computes."""


class TimmEncoder(HuggingFaceEncoder):
    """A text tower of `transformers` and an image tower of timm, which takes no tokens.

    Args:
        model: a ``CLIPModel``, of which only the text tower is used.
        tower: from normalised pixels (B,3,S,S) to features (B, D).
        tokenizer: what the text tower reads.
        preprocessing: what the image tower takes.
        source: how the user calls it.
        revision: commit of a hub repository.
        network: which of timm's networks the image tower is, which its weights do not show.
    """

    def __init__(
        self,
        model: nn.Module,
        tower: nn.Module,
        tokenizer: Any,
        preprocessing: Preprocessing,
        source: str,
        revision: str | None,
        network: str,
    ) -> None:
        super().__init__(model, tokenizer, preprocessing, source, revision, CLIP())
        self.model.vision_model = self.model.visual_projection = nn.Identity()
        self.tower = tower.eval().requires_grad_(False)
        sha256 = sha256_of_weights(self)
        text = self.info.architecture.partition("; ")[2]
        self.info = replace(
            self.info,
            family="timm",
            visual_width=0,
            visual_depth=0,
            weights_sha256=sha256,
            architecture=f"image: {network}; {text}",
        )

    def encode_image_by_block(self, x: Tensor, tokens: Tokens = ()) -> tuple[Tensor, Tensor]:
        """See `DualEncoder.encode_image_by_block`; timm's blocks are not shown."""
        return DualEncoder.encode_image_by_block(self, x, tokens)

    def encode_image(self, x: Tensor, tokens: Tokens = (), states: list[Tensor] | None = None) -> Tensor:
        """See `DualEncoder.encode_image`; there are no tokens, and no ``states`` to take."""
        self.check_pixels(x)
        if len(tokens):
            raise InputError(f"{self.info.source} takes no visual tokens: its image tower is timm's.")
        features: Tensor = self.tower(((x - self.mean) / self.std).to(next(self.tower.parameters()).dtype))
        return features


class _Tower(nn.Module):
    """timm's network and open_clip's projection, under open_clip's names."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, D) of normalised pixels (B,3,S,S)."""
        features: Tensor = self.head(self.trunk(x))
        return features


def build_timm(
    model: Mapping[str, Any],
    towers: Towers,
    tokenizer: Any,
    preprocessing: Preprocessing,
    source: str,
    revision: str | None,
    dtype: torch.dtype,
) -> TimmEncoder:
    """Make an encoder of a section ``model_cfg`` whose image tower is timm's.

    Args:
        model: the section.
        towers: weights; those of the image tower with ``trunk.`` and ``head.`` before their names.
        tokenizer: what the text tower reads.
        preprocessing: what the image tower takes.
        source: how the user calls it.
        revision: commit of a hub repository.
        dtype: type of the weights.

    Raises:
        InputError: timm is not installed, does not know the network, or the weights are not those of this model.
    """
    with reading_config(source):
        clip = _text_model(model, towers, preprocessing.size, source)
        tower = _network(model, preprocessing.size, source)
    _fill(tower, towers.image, "visual.", source)
    check_values(clip, f"The CLIP at {source!r}")
    network = ", ".join(f"{name} {value}" for name, value in sorted(model["vision_cfg"].items()) if name in _TIMM)
    return TimmEncoder(clip.to(dtype), tower.to(dtype), tokenizer, preprocessing, source, revision, network)


def _text_model(model: Mapping[str, Any], towers: Towers, side: int, source: str) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    text = model["text_cfg"]
    if text.get("no_causal_mask") or text.get("pool_type", "argmax") not in ("argmax", "eos") or text.get("proj_bias"):
        raise InputError(f"{source}: text_cfg is not that of a CLIP; supported: {SUPPORTED}.")
    unused = {"hidden_size": 1, "intermediate_size": 1, "num_hidden_layers": 1, "num_attention_heads": 1}
    own = text_config(text, bool(model.get("quick_gelu")))
    vision = {**unused, "image_size": side, "patch_size": side, "hidden_act": own["hidden_act"]}
    clip = CLIPModel(CLIPConfig(text_config=own, vision_config=vision, projection_dim=int(model["embed_dim"])))
    found, unknown = TEXT.convert(towers.text)
    if unknown:
        raise InputError(f"{source}: the checkpoint has weights that are not a CLIP's: {printable(unknown[0])}.")
    given = {**found, **{name: value for name, value in towers.rest.items() if name == "logit_scale"}}
    _fill(clip, given, "", source, unused=("vision_model.", "visual_projection."))
    return clip


def _network(model: Mapping[str, Any], side: int, source: str) -> _Tower:
    """Build timm's network as open_clip does."""
    vision, width = model["vision_cfg"], int(model["embed_dim"])
    name, pool, projection = (
        str(vision["timm_model_name"]),
        vision.get("timm_pool", "avg"),
        vision.get("timm_proj", "linear"),
    )
    try:
        timm: Any = import_module("timm")
    except Exception as error:  # timm imports torchvision, which fails in many ways where it does not fit torch
        why = one_line(error, 100)
        raise InputError(
            f"{source}: the image tower {printable(name)} needs the package timm, which cannot be imported here ({why}): "
            f"{install_command('timm')}. Without it: {SUPPORTED}."
        ) from error
    if pool in ("abs_attn", "rot_attn") or projection not in ("linear", "none", "", None):
        raise InputError(f"{source}: vision_cfg.timm_pool {pool} with timm_proj {projection} is not supported.")
    head = nn.Sequential()
    try:
        if projection == "linear":
            trunk = timm.create_model(name, pretrained=False)
            trunk.reset_classifier(0, **({"global_pool": pool} if pool else {}))
            head.add_module("proj", nn.Linear(trunk.num_features, width, bias=bool(vision.get("timm_proj_bias"))))
        else:
            classes = 0 if projection == "none" else width
            trunk = timm.create_model(name, num_classes=classes, global_pool=pool, pretrained=False)
        return _Tower(trunk, head)
    except Exception as error:  # of whatever kind a network raises for settings it does not take
        why = one_line(error, 200)
        raise InputError(f"{source}: timm cannot build {printable(name)} of {side} px: {why}") from error


def _fill(module: nn.Module, weights: Tensors, prefix: str, source: str, unused: tuple[str, ...] = ()) -> None:
    """Load weights; none may be missing, too many, or of another shape."""
    own = module.state_dict()
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            wanted = tuple(own[name].shape) if name in own else "no place"
            raise InputError(
                f"{source}: the checkpoint has weights {prefix}{printable(name)} of shape {tuple(value.shape)}, its "
                f"configuration has {wanted}."
            )
    counters = (*unused, "num_batches_tracked", "position_ids")
    missing = [name for name in own if name not in weights and not any(each in name for each in counters)]
    if missing:
        raise InputError(f"{source}: the checkpoint lacks weights: {prefix}{missing[0]}. Get it again.")
    module.load_state_dict(weights, strict=False)
