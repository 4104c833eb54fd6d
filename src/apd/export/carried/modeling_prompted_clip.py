"""A CLIP model of transformers with learned visual tokens; needs torch and transformers.

from transformers import pipeline

pipeline("zero-shot-image-classification", model="FOLDER", trust_remote_code=True)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, PretrainedConfig


class PromptedCLIPConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """The configuration of a plain CLIP model in ``clip_config``, and the number of visual tokens, and of blocks that have some.

    Apart from `CLIPConfig`, so that a plain CLIP model refuses these weights instead of leaving out their tokens.
    """

    model_type = "apd_prompted_clip"

    clip_config: dict[str, Any] | None = None
    visual_tokens: int = 0
    visual_depth: int = 0
    hidden_size: int = 12
    """A width that no tower has; a plain `CLIPVisionModel` takes it for its own, and then refuses the weights."""


class VisualTokens(nn.ParameterList):
    """Learned tokens (n, width) per block; they join the sequence after the patches, and each block replaces them by its own."""

    def join(self, norm: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
        """Add the first block's tokens to the rows (B, L, width) that enter the norm before the blocks."""
        return torch.cat([inputs[0], self[0].expand(len(inputs[0]), -1, -1)], dim=1)

    def replace(self, depth: int, block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replace the last n of the rows that enter a block by the block's tokens."""
        rows, tokens = inputs[0], self[depth]
        own = rows[:, : rows.shape[1] - len(tokens)]
        return torch.cat([own, tokens.expand(len(rows), -1, -1)], dim=1), *inputs[1:]


class PromptedCLIPModel(CLIPModel):  # type: ignore[no-untyped-call]
    """A CLIP model whose image tower has visual tokens, and whose text tower looks up the feature of each class."""

    config_class = PromptedCLIPConfig

    def __init__(self, config: PromptedCLIPConfig) -> None:
        plain: Any = CLIPConfig(**(config.clip_config or {}))
        super().__init__(plain)
        self.config = config  # type: ignore[assignment]
        n, width = config.visual_tokens, plain.vision_config.hidden_size
        self.visual_tokens = VisualTokens(nn.Parameter(torch.zeros(n, width)) for _ in range(config.visual_depth))
        self.vision_model.pre_layrnorm.register_forward_pre_hook(self.visual_tokens.join)
        for depth in range(1, config.visual_depth):
            block = self.vision_model.encoder.layers[depth]
            block.register_forward_pre_hook(partial(self.visual_tokens.replace, depth))
