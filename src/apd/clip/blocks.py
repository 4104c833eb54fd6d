"""A transformer block of CLIP or SigLIP, taken apart: its own kernels, attention as wanted, and only the rows wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor
from transformers.activations import QuickGELUActivation

from apd.clip.kernels import linear, quick_gelu

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From projected queries, keys and values (..., width) to what each query has gathered, of the queries' shape."""


def run_block(block: Any, h: Tensor, attend: Attend, pick: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """One block of a `transformers` tower on ``h`` (..., width), equal to ``block(h)`` up to float rounding.

    Args:
        block: with ``layer_norm1``, ``self_attn``, ``layer_norm2`` and ``mlp``; its weights take no gradient.
        h: rows that enter the block.
        attend: see `Attend`.
        pick: the rows that are needed behind the block, where not all are: only they ask, all are asked.
    """
    attention = block.self_attn
    x = block.layer_norm1(h)
    k, v = linear(attention.k_proj, x), linear(attention.v_proj, x)
    if pick is not None:
        h, x = pick(h), pick(x)
    h = h + linear(attention.out_proj, attend(linear(attention.q_proj, x), k, v))
    x = linear(block.mlp.fc1, block.layer_norm2(h))
    activation = block.mlp.activation_fn
    x = quick_gelu(x) if isinstance(activation, QuickGELUActivation) else activation(x)
    return h + linear(block.mlp.fc2, x)


def attend_all(heads: int, mask: Tensor | None = None, is_causal: bool = False) -> Attend:
    """Plain multi-head attention over (B, L, width): everything sees everything, or what ``mask`` or causality let it."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        gathered = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
        return cast(Tensor, gathered.transpose(1, 2).flatten(2))

    return attend
