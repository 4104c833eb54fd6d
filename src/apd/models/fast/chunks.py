"""Many classes in little memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from apd.models.encoder import Tokens


def in_chunks(encode: Callable[[Tensor, Tokens], Tensor], ids: Tensor, tokens: Tokens, n: int) -> Tensor:
    """``encode(ids, tokens)`` in ``n`` parts of the classes.

    Where gradients are wanted, a part keeps its inputs only and is computed again when they are: one part's graph is in
    memory at a time, for the price of a second forward pass (Chen 2016, arXiv 1604.06174).
    """
    if n <= 1:
        return encode(ids, tokens)
    graph = torch.is_grad_enabled() and any(rows.requires_grad for rows in tokens)
    parts = []
    for classes in torch.arange(len(ids), device=ids.device).chunk(n):
        own = [rows[classes.to(rows.device)] if rows.dim() == 3 else rows for rows in tokens]
        if graph:
            parts.append(checkpoint(encode, ids[classes], own, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(encode(ids[classes], own))
    return torch.cat(parts)
