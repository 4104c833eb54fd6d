"""What sets families of CLIP models apart: one class for each, and their table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from apd.models.fast.kernels import linear


class Family(ABC):
    """Models of one kind in the Hugging Face format; holds no state."""

    model_type: ClassVar[str]
    """What ``model_type`` says in config.json, and the family's name in an `EncoderInfo`."""
    causal_text: ClassVar[bool]
    """Whether a word sees only the words before it."""
    start_tokens: ClassVar[int]
    """Tokens before the first word of a text."""
    class_token: ClassVar[bool]
    """Whether the first row of the image tower becomes the image's feature; else a head pools all rows."""
    one_activation: ClassVar[bool] = False
    """Whether both towers must have the same activation."""
    lower_case: ClassVar[bool] = False
    """Whether texts are lower-cased, unless the tokenizer's files say something else."""

    def recognises(self, model_type: str, tokenizer: Any) -> bool:
        """Whether a model is of this family."""
        return model_type == self.model_type

    @abstractmethod
    def embed_dim(self, config: Any) -> int:
        """Return the number of values in a feature."""

    def logit_bias(self, model: Any) -> float:
        """Return what is added to scaled cosines."""
        return 0.0

    def before_blocks(self, model: Any, rows: Tensor) -> Tensor:
        """Make the input of the first image block of the embedded rows (B, L, W), visual tokens included."""
        return rows

    @abstractmethod
    def image_features(self, model: Any, rows: Tensor) -> Tensor:
        """Turn rows (B, L, W) after the last image block, without those of tokens, into features (B, D)."""

    @abstractmethod
    def text_head(self, model: Any) -> nn.Linear:
        """Return the module from the pooled and normalised row of a text to its feature."""

    @abstractmethod
    def pooled_positions(self, ids: Tensor, end: int) -> Tensor:
        """Return the row (C,) of each text (C, L) that becomes its feature; ``end`` is the end token in config.json."""

    @abstractmethod
    def is_read_at_last(self, ids: list[int], end: int) -> bool:
        """Whether the feature of a text without padding is read at its last token, or does not depend on which one that is."""


class CLIP(Family):
    """CLIP (Radford 2021): a causal text tower that is read at the end token, an image tower with a class token."""

    model_type = "clip"
    causal_text = True
    start_tokens = 1
    class_token = True
    one_activation = True

    def embed_dim(self, config: Any) -> int:
        """Both towers are projected."""
        return int(config.projection_dim)

    def before_blocks(self, model: Any, rows: Tensor) -> Tensor:
        """Normalise; the name is misspelt in the library."""
        return cast(Tensor, model.vision_model.pre_layrnorm(rows))

    def image_features(self, model: Any, rows: Tensor) -> Tensor:
        """Project the class token."""
        return linear(model.visual_projection, model.vision_model.post_layernorm(rows[:, 0, :]))

    def text_head(self, model: Any) -> nn.Linear:
        """Project."""
        return cast(nn.Linear, model.text_projection)

    def pooled_positions(self, ids: Tensor, end: int) -> Tensor:
        """Pool where transformers does: at the first end token; for the historical ``eos_token_id`` 2 at the largest id."""
        return ids.argmax(dim=-1) if end == 2 else (ids == end).int().argmax(dim=-1)

    def is_read_at_last(self, ids: list[int], end: int) -> bool:
        """Whether the text ends with its only end token."""
        found = max(ids, default=None) if end == 2 else end
        return found in ids and ids.index(found) == len(ids) - 1


class CLIPA(CLIP):
    """CLIPA (Li 2023) and DeltaCLIP (Wang 2025): patches averaged in place of a class token, texts read at the last position.

    Not in `FAMILIES`: checkpoints come from open_clip only, and are known by its configuration.
    """

    model_type = "clipa"
    causal_text = False
    class_token = False

    def image_features(self, model: Any, rows: Tensor) -> Tensor:
        """Average the patches, without the class token, then normalise and project."""
        pooled = model.vision_model.post_layernorm(rows[:, 1:].mean(dim=1))
        return linear(model.visual_projection, pooled)

    def pooled_positions(self, ids: Tensor, end: int) -> Tensor:
        """Pool at the last position, padding or not."""
        return torch.full((ids.shape[0],), ids.shape[1] - 1, device=ids.device)

    def is_read_at_last(self, ids: list[int], end: int) -> bool:
        """The last position sees every token."""
        return True


class SigLIP(Family):
    """SigLIP (Zhai 2023): texts are read at the last position, in both directions; a head pools the patches."""

    model_type = "siglip"
    causal_text = False
    start_tokens = 0
    class_token = False

    def embed_dim(self, config: Any) -> int:
        """The image tower is not projected."""
        return int(config.vision_config.hidden_size)

    def logit_bias(self, model: Any) -> float:
        """Learned, since each pair is a decision of its own."""
        return float(model.logit_bias)

    def image_features(self, model: Any, rows: Tensor) -> Tensor:
        """Pool by attention."""
        tower = model.vision_model
        return cast(Tensor, tower.head(tower.post_layernorm(rows)))

    def text_head(self, model: Any) -> nn.Linear:
        """Project, inside of the tower."""
        return cast(nn.Linear, model.text_model.head)

    def pooled_positions(self, ids: Tensor, end: int) -> Tensor:
        """Pool at the last position, padding or not."""
        return torch.full((ids.shape[0],), ids.shape[1] - 1, device=ids.device)

    def is_read_at_last(self, ids: list[int], end: int) -> bool:
        """The last position sees every token."""
        return True


class SigLIP2(SigLIP):
    """SigLIP 2 (Tschannen 2025): a SigLIP with Gemma's tokenizer, which keeps capitals, trained on lower-cased texts."""

    lower_case = True

    def recognises(self, model_type: str, tokenizer: Any) -> bool:
        """Tell it from a SigLIP by the tokenizer; config.json says the same of both."""
        return super().recognises(model_type, tokenizer) and "gemma" in type(tokenizer).__name__.lower()


FAMILIES: tuple[Family, ...] = (CLIP(), SigLIP2(), SigLIP())
"""The supported families; a model is of the first that recognises it."""


def family_of(model_type: str, tokenizer: Any) -> Family:
    """Return the family of a model that `check_config` lets through."""
    return next(family for family in FAMILIES if family.recognises(model_type, tokenizer))
