"""The two towers of a CLIP, prompted plainly and with no library code around: what references and floors are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from apd.models import DualEncoder
from apd.models.fast.blocks import attend_all, run_block


@dataclass(frozen=True)
class Towers:
    """The blocks of a `transformers` ``CLIPModel`` with weights of its own, and what turns pixels into its input.

    Prompt tokens enter as in `apd.models.DualEncoder`, one (n, width) tensor a block: visual ones behind the patches, text
    ones behind the start token.

    Args:
        model: the towers.
        mean, std: of the normalisation.
        own_kernels: let `apd.models.fast` compute each whole block: float32 products by oneDNN, a fused activation, bfloat16
            weights kept; else the model's own modules.
    """

    model: Any
    mean: Tensor
    std: Tensor
    own_kernels: bool = False

    @classmethod
    def load(cls, folder: Path | str, encoder: DualEncoder, dtype: torch.dtype = torch.float32) -> Towers:
        """The towers in ``folder``, with the normalisation and on the device of ``encoder``."""
        from transformers import CLIPModel

        model = CLIPModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        constants = (encoder.info.preprocessing.mean, encoder.info.preprocessing.std)
        # Rounded to float32 whatever the precision, as the encoder holds them.
        mean, std = (torch.tensor(v).view(1, 3, 1, 1).to(encoder.device, dtype) for v in constants)
        return cls(model.eval().requires_grad_(False).to(encoder.device), mean, std)

    def on_our_kernels(self, encoder: DualEncoder) -> Towers:
        """The same walk through the weights of ``encoder``, row for row, by our kernels."""
        return Towers(cast(Any, encoder).model, self.mean, self.std, own_kernels=True)

    def _run(self, block: Any, h: Tensor, causal: bool) -> Tensor:
        if self.own_kernels:
            return run_block(block, h, attend_all(block.self_attn.num_heads, is_causal=causal))
        after: Tensor = block(h, None, is_causal=causal)
        return after

    def image(self, x: Tensor, tokens: Sequence[Tensor] = ()) -> Tensor:
        """Features (B, D) of images (B,3,S,S) in [0,1]."""
        tower = self.model.vision_model
        h = tower.embeddings((x - self.mean) / self.std)
        n = len(tokens[0]) if tokens else 0
        if n:
            h = torch.cat([h, tokens[0].to(h.dtype).expand(len(h), -1, -1)], dim=1)
        h = tower.pre_layrnorm(h)
        for depth, block in enumerate(tower.encoder.layers):
            if 0 < depth < len(tokens):
                h = torch.cat([h[:, :-n], tokens[depth].to(h.dtype).expand(len(h), -1, -1)], dim=1)
            h = self._run(block, h, causal=False)
        features: Tensor = self.model.visual_projection(tower.post_layernorm(h[:, 0]))
        return features

    def text(self, ids: Tensor, tokens: Sequence[Tensor] = ()) -> Tensor:
        """Features (C, D) of token ids (C, L), taken at the first end token."""
        tower = self.model.text_model
        words = tower.embeddings.token_embedding(ids)
        n = len(tokens[0]) if tokens else 0
        if n:
            words = torch.cat([words[:, :1], tokens[0].expand(len(ids), -1, -1), words[:, 1 + n :]], dim=1)
        h = tower.embeddings(inputs_embeds=words)
        for depth, block in enumerate(tower.encoder.layers):
            if 0 < depth < len(tokens):
                h = torch.cat([h[:, :1], tokens[depth].to(h.dtype).expand(len(h), -1, -1), h[:, 1 + n :]], dim=1)
            h = self._run(block, h, causal=True)
        h = tower.final_layer_norm(h)
        end = (ids == self.model.config.text_config.eos_token_id).int().argmax(dim=1)
        features: Tensor = self.model.text_projection(h[torch.arange(len(ids)), end])
        return features
