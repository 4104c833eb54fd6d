"""Prompted class features with everything that all classes share computed once.

In a causal text tower the start token and context tokens that are the same for all classes have the same hidden states,
keys and values for all classes, at every layer. They are one prefix of a few rows; a class is its suffix: name, tail and
end token. Suffixes of any length lie one after the other in tiles, so that nothing is computed for padding, and a
suffix sees the prefix and itself. Equal, up to float rounding, to walking every class's whole sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.models.encoder import Tokens
from apd.models.fast.blocks import attend_all, run_block

_TILE = 48
"""Rows per tile, about: longer tiles spend more on attention, shorter ones more on starting it."""


@dataclass(frozen=True)
class Layout:
    """Where suffixes lie: tiles (T, Q) of rows, up to E suffixes each.

    Args:
        prefix: ids (p,) of the rows that all classes share.
        ids: (T, Q) of the suffixes; 0 where no suffix lies.
        positions: (T, Q) in the text.
        mask: (T, 1, Q, p + Q) which of prefix and tile a row sees.
        ends: (T, E) rows of the end tokens in the tile.
        places: (C,) where a class's end token is in ``ends``, flattened.
    """

    prefix: Tensor
    ids: Tensor
    positions: Tensor
    mask: Tensor
    ends: Tensor
    places: Tensor

    @classmethod
    def of(cls, ids: Tensor, ends: Tensor, n_prefix: int) -> Layout:
        """Lay out ids (C, L) whose end tokens are at ``ends`` (C,), after ``n_prefix`` shared rows; on the CPU."""
        lengths = ends - n_prefix + 1
        tiles = max(1, -(-int(lengths.sum()) // _TILE))
        tile, slot, offset, rows = _deal(lengths, tiles)
        step = torch.arange(int(lengths.max()))
        within = step < lengths[:, None]
        flat = ((tile * rows + offset)[:, None] + step)[within]

        def lay(values: Tensor, empty: int) -> Tensor:
            laid = torch.full((tiles * rows,), empty)
            laid[flat] = values.expand(within.shape)[within]
            return laid.view(tiles, rows)

        owners, steps = lay(torch.arange(len(ids))[:, None], -1), lay(step, 0)
        own = (owners[:, :, None] == owners[:, None, :]) & (steps[:, :, None] >= steps[:, None, :])
        wide = int(slot.max()) + 1
        end_rows = torch.zeros(tiles, wide, dtype=torch.long)
        end_rows[tile, slot] = offset + lengths - 1
        return cls(
            prefix=ids[0, :n_prefix],
            ids=lay(ids[:, n_prefix : n_prefix + len(step)], 0),
            positions=n_prefix + steps,
            mask=F.pad(own, (n_prefix, 0), value=True)[:, None],
            ends=end_rows,
            places=tile * wide + slot,
        )

    def to(self, device: torch.device) -> Layout:
        """Move the layout to ``device``."""
        return Layout(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})


def _deal(lengths: Tensor, tiles: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """Deal suffixes, longest first, forth and back over the tiles, so that all tiles are about equally full.

    Returns each suffix's tile, its turn there and its first row, and the rows of the fullest tile.
    """
    rank = torch.empty_like(lengths)
    rank[lengths.argsort(descending=True, stable=True)] = torch.arange(len(lengths))
    slot, tile = rank // tiles, rank % tiles
    tile = torch.where(slot % 2 == 0, tile, tiles - 1 - tile)
    dealt = torch.zeros(int(slot.max()) + 1, tiles, dtype=torch.long)
    dealt[slot, tile] = lengths
    offset = (dealt.cumsum(0) - dealt)[slot, tile]
    return tile, slot, offset, int(dealt.sum(0).max())


def end_states(text_model: Any, layout: Layout, tokens: Tokens, first_row: int) -> Tensor:
    """Hidden states (C, width) of the end tokens after the last block, before the final layer norm.

    Args:
        text_model: a causal text tower of `transformers`.
        layout: where the suffixes lie.
        tokens: (n, width) per block; they replace the prefix's rows from ``first_row`` on, which they fill.
        first_row: rows in front of the tokens.
    """
    h = _embed(text_model.embeddings, layout, tokens[0], first_row)
    n, after = len(tokens[0]), layout.ids.numel()
    blocks = text_model.encoder.layers
    attend = _Attend(layout, blocks[0].self_attn.num_heads)
    for depth, block in enumerate(blocks[:-1]):
        h = run_block(block, h, attend.everywhere)
        if depth + 1 < len(tokens):
            start, _, suffixes = torch.split(h, [first_row, n, after])
            h = torch.cat([start, tokens[depth + 1].to(h.dtype), suffixes])
    h = run_block(blocks[-1], h, attend.at_ends, attend.pick_ends)
    return h[layout.places]


def _embed(embeddings: Any, layout: Layout, tokens: Tensor, first_row: int) -> Tensor:
    words, positions = embeddings.token_embedding, embeddings.position_embedding
    start = words(layout.prefix[:first_row])
    prefix = torch.cat([start, tokens.to(start.dtype)]) + positions.weight[: len(layout.prefix)]
    return torch.cat([prefix, (words(layout.ids) + positions(layout.positions)).flatten(0, 1)])


class _Attend:
    """Attention over rows (p + T*Q, width): the prefix sees itself, a tile sees the prefix and what its mask lets it."""

    def __init__(self, layout: Layout, heads: int) -> None:
        self.heads, self.mask = heads, layout.mask
        self.tiles, self.rows = layout.ids.shape
        self.n_prefix = len(layout.prefix)
        tile = torch.arange(self.tiles, device=layout.ends.device)[:, None]
        self.ends = (self.n_prefix + tile * self.rows + layout.ends).flatten()
        self.end_mask = layout.mask[tile, :, layout.ends].transpose(1, 2)

    def everywhere(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All rows ask."""
        (q0, q1), (k0, k1), (v0, v1) = (torch.split(t, [self.n_prefix, self.tiles * self.rows]) for t in (q, k, v))
        prefix = attend_all(self.heads, is_causal=True)(q0[None], k0[None], v0[None])[0]
        return torch.cat([prefix, self._tiles(q1, (k0, k1), (v0, v1), self.mask)])

    def at_ends(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The end tokens ask."""
        k_parts, v_parts = (torch.split(t, [self.n_prefix, self.tiles * self.rows]) for t in (k, v))
        return self._tiles(q, k_parts, v_parts, self.end_mask)

    def pick_ends(self, rows: Tensor) -> Tensor:
        """The rows of the end tokens (T*E, width)."""
        return rows[self.ends]

    def _tiles(self, q: Tensor, k: tuple[Tensor, ...], v: tuple[Tensor, ...], mask: Tensor) -> Tensor:
        def whole(prefix: Tensor, tiles: Tensor) -> Tensor:
            return torch.cat([prefix.expand(self.tiles, -1, -1), torch.unflatten(tiles, 0, (self.tiles, -1))], dim=1)

        q = torch.unflatten(q, 0, (self.tiles, -1))
        return attend_all(self.heads, mask)(q, whole(*k), whole(*v)).flatten(0, 1)
