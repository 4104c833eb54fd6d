"""Where weights are called what: from the names of open_clip, OpenAI and timm to those of `transformers`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Names of one tower.

    Args:
        top: name, or its part before ``.weight`` and ``.bias``, to the name in `transformers`.
        blocks: what the names of blocks begin with, before and after.
        block: as ``top``, inside of a block.
        fused: inside of a block, name of queries, keys and values in one tensor to the name's last part.
        transposed: names in ``top`` of matrices that are stored the other way round.
        squeezed: names in ``top`` of tensors with a first dimension of 1 too many.
    """

    top: Mapping[str, str]
    blocks: tuple[str, str]
    block: Mapping[str, str]
    fused: Mapping[str, str]
    transposed: tuple[str, ...] = ()
    squeezed: tuple[str, ...] = ()

    def convert(self, tensors: Mapping[str, Tensor]) -> tuple[Tensors, list[str]]:
        """Rename tensors; also return the names that mean nothing here."""
        found: Tensors = {}
        unknown: list[str] = []
        for name, tensor in tensors.items():
            new = self._block(name, tensor) if name.startswith(self.blocks[0]) else self._top(name, tensor)
            found |= new
            unknown += [] if new else [name]
        return found, unknown

    def _top(self, name: str, tensor: Tensor) -> Tensors:
        new = _renamed(name, self.top)
        if new is None:
            return {}
        if name in self.squeezed and tensor.dim() > 0:
            tensor = tensor[0]
        return {new: tensor.T.contiguous() if name in self.transposed and tensor.dim() == 2 else tensor}

    def _block(self, name: str, tensor: Tensor) -> Tensors:
        number, _, inner = name.removeprefix(self.blocks[0]).partition(".")
        place = f"{self.blocks[1]}{number}"
        if inner in self.fused:
            return {
                f"{place}.self_attn.{part}_proj.{self.fused[inner]}": each.contiguous()
                for part, each in zip("qkv", tensor.chunk(3), strict=False)
            }
        new = _renamed(inner, self.block)
        return {} if new is None else {f"{place}.{new}": tensor}


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    if name in table:
        return table[name]
    stem, _, last = name.rpartition(".")
    return f"{table[stem]}.{last}" if stem in table and last in ("weight", "bias") else None


_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_FUSED = {"attn.in_proj_weight": "weight", "attn.in_proj_bias": "bias"}
_VISION = "vision_model.embeddings"
_TEXT = "text_model.embeddings"

IMAGE = Layout(
    top={
        "class_embedding": f"{_VISION}.class_embedding",
        "positional_embedding": f"{_VISION}.position_embedding.weight",
        "conv1": f"{_VISION}.patch_embedding",
        "ln_pre": "vision_model.pre_layrnorm",
        "ln_post": "vision_model.post_layernorm",
        "proj": "visual_projection.weight",
    },
    blocks=("transformer.resblocks.", "vision_model.encoder.layers."),
    block=_BLOCK,
    fused=_FUSED,
    transposed=("proj",),
)
"""The image tower of OpenAI and open_clip, without the ``visual.`` before its names."""

TEXT = Layout(
    top={
        "token_embedding": f"{_TEXT}.token_embedding",
        "positional_embedding": f"{_TEXT}.position_embedding.weight",
        "ln_final": "text_model.final_layer_norm",
        "text_projection": "text_projection.weight",
    },
    blocks=("transformer.resblocks.", "text_model.encoder.layers."),
    block=_BLOCK,
    fused=_FUSED,
    transposed=("text_projection",),
)
"""Their text tower, without the ``text.`` that open_clip's ``CustomTextCLIP`` puts before its names."""

SIGLIP_TEXT = Layout(
    top={**TEXT.top, "text_projection": "text_model.head"},
    blocks=TEXT.blocks,
    block=_BLOCK,
    fused=_FUSED,
)
"""The text tower of open_clip's SigLIP, whose projection has a bias."""

SIGLIP_IMAGE = Layout(
    top={
        "pos_embed": f"{_VISION}.position_embedding.weight",
        "patch_embed.proj": f"{_VISION}.patch_embedding",
        "norm": "vision_model.post_layernorm",
        "attn_pool.latent": "vision_model.head.probe",
        "attn_pool.in_proj_weight": "vision_model.head.attention.in_proj_weight",
        "attn_pool.in_proj_bias": "vision_model.head.attention.in_proj_bias",
        "attn_pool.proj": "vision_model.head.attention.out_proj",
        "attn_pool.norm": "vision_model.head.layernorm",
        "attn_pool.mlp.fc1": "vision_model.head.mlp.fc1",
        "attn_pool.mlp.fc2": "vision_model.head.mlp.fc2",
    },
    blocks=("blocks.", "vision_model.encoder.layers."),
    block={
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
    fused={"attn.qkv.weight": "weight", "attn.qkv.bias": "bias"},
    squeezed=("pos_embed",),
)
"""timm's SigLIP tower, without the ``visual.trunk.`` before its names, queries beside keys and values (`join_pool`)."""


@dataclass
class Towers:
    """The weights of a model of open_clip's or OpenAI's naming, taken apart.

    Args:
        image: weights of the image tower, without a prefix.
        text: weights of the text tower, without a prefix.
        rest: ``logit_scale`` and ``logit_bias``.
    """

    image: Tensors = field(default_factory=dict)
    text: Tensors = field(default_factory=dict)
    rest: Tensors = field(default_factory=dict)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Towers:
        """Sort tensors by their prefix; masks, sizes and other things beside weights are left out."""
        towers = cls()
        for name, tensor in tensors.items():
            if name in _NO_WEIGHTS or not tensor.is_floating_point():
                continue
            if name.startswith("visual."):
                towers.image[name.removeprefix("visual.")] = tensor
            elif name in ("logit_scale", "logit_bias"):
                towers.rest[name] = tensor.reshape(())
            else:
                towers.text[name.removeprefix("text.")] = tensor
        return towers


_NO_WEIGHTS = ("attn_mask", "text.attn_mask", "input_resolution", "context_length", "vocab_size")
_WRAPPERS = re.compile(
    r"^((module|_orig_mod|model|clip_model)\.)+(?=visual\.|text\.|transformer\.|conv1\.|vision_model\.)"
)


def join_pool(tensors: Tensors) -> Tensors:
    """Join timm's queries with its keys and values, which `torch.nn.MultiheadAttention` has in one tensor."""
    import torch

    joined = dict(tensors)
    for part in ("weight", "bias"):
        query, rest = joined.pop(f"attn_pool.q.{part}", None), joined.pop(f"attn_pool.kv.{part}", None)
        if query is not None and rest is not None:
            joined[f"attn_pool.in_proj_{part}"] = torch.cat([query, rest])
    return joined


def unwrapped(tensors: Mapping[str, Tensor]) -> Tensors:
    """Take off what wrappers for several processes, for compilation and of training code put before all names.

    >>> list(unwrapped({"module.visual.proj": None, "module.logit_scale": None}))
    ['visual.proj', 'logit_scale']
    """
    found = next((match.group(0) for name in tensors if (match := _WRAPPERS.match(name))), "")
    return {name.removeprefix(found): tensor for name, tensor in tensors.items()}
