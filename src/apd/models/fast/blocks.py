"""A transformer block of CLIP or SigLIP, taken apart: its own kernels, attention as wanted, and only the rows wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import QuickGELUActivation

from apd.models.encoder import Tokens
from apd.models.fast.kernels import linear, quick_gelu, without_autocast

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From projected queries, keys and values (..., width) to what each query has gathered, of the queries' shape."""


def run_block(block: Any, h: Tensor, attend: Attend, pick: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """One block of a `transformers` tower on ``h`` (..., width), equal to ``block(h)`` up to float rounding.

    Args:
        block: with ``layer_norm1``, ``self_attn``, ``layer_norm2`` and ``mlp``; its weights take no gradient.
        h: rows that enter the block.
        attend: see `Attend`.
        pick: selects the rows whose output is needed; only these become queries, all rows become keys and values.
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
        dtype = q.dtype
        if q.device.type == "cpu":
            # The CPU's fused attention goes backward four times slower in bfloat16 than in float32.
            q, k, v = (t.float() if t.dtype is torch.bfloat16 else t for t in (q, k, v))
        q, k, v = (torch.unflatten(t, -1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        with without_autocast(q.device.type):
            gathered = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
        return gathered.transpose(1, 2).flatten(2).to(dtype)

    return attend


def append_rows(h: Tensor, rows: Tensor) -> Tensor:
    """``h`` (B, L, width) with ``rows``, (n, width) or (B, n, width), appended."""
    return torch.cat([h, rows.to(h.dtype).expand(h.shape[0], -1, -1)], dim=1)


def run_blocks(
    blocks: Any,
    h: Tensor,
    tokens: Tokens,
    n_own: int,
    pooled: Tensor | None = None,
    mask: Tensor | None = None,
    first_rows: list[Tensor] | None = None,
) -> Tensor:
    """A tower's blocks, with prompt tokens, if any, after the rows of its own, and without the rows that nothing reads.

    Before block d the token rows are replaced by ``tokens[d]``: what the block before makes of them is not computed, nor
    what the last block makes of rows that are not pooled.

    Args:
        blocks: the blocks of a `transformers` tower.
        h: rows (B, L, width) that enter the first block, ``tokens[0]`` among them.
        tokens: (n, width) or (B, n, width) per block; empty for none.
        n_own: L - n, the rows in front of the tokens.
        pooled: (B,) the row that becomes the feature; None: all rows of its own.
        mask: (L, L) which row sees which; None: everything.
        first_rows: takes the first row (B, width) of what leaves each block; with ``pooled``, the pooled row of the last.

    Returns:
        (B, 1, width) or (B, n_own, width).
    """
    heads, batch = blocks[0].self_attn.num_heads, torch.arange(h.shape[0], device=h.device)
    for depth, block in enumerate(blocks):
        if 0 < depth < len(tokens):
            h = append_rows(h, tokens[depth])
        last = depth + 1 == len(blocks)
        if last and pooled is not None:
            seen = None if mask is None else mask[pooled][:, None, None]
            h = run_block(block, h, attend_all(heads, seen), lambda rows: rows[batch, pooled][:, None])
        else:
            read = n_own if last or depth + 1 < len(tokens) else h.shape[1]
            attend = attend_all(heads, None if mask is None else mask[:read])
            h = run_block(block, h, attend, lambda rows, read=read: rows[:, :read])  # type: ignore[misc]
        if first_rows is not None:
            first_rows.append(h[:, 0])
    return h
