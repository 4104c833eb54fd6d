"""`DualEncoder`: a frozen CLIP seen in one way, whatever it was made with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, Self

import torch
from torch import Tensor

from apd.errors import InputError
from apd.models.preprocessing import Preprocessing
from apd.models.shown import ShownInShort

Tokens = Sequence[Tensor]
"""Prompt tokens of one branch: one (n, width) tensor per block, block 0 first; empty for no prompts."""


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """What one needs to know of a CLIP model to prompt it, and to recognise it again.

    ``text_depth`` and ``visual_depth`` count the blocks that take tokens; 0 means that the branch takes none. An encoder of
    your own may leave out ``source`` and the hashes: `apd.load_clip` fills them in.
    """

    source: str = ""
    revision: str | None = None
    family: str = "custom"
    image_size: int
    preprocessing: Preprocessing
    context_length: int
    embed_dim: int
    text_width: int = 0
    visual_width: int = 0
    text_depth: int = 0
    visual_depth: int = 0
    causal_text: bool = False
    logit_scale: float = 100.0
    logit_bias: float = 0.0
    weights_sha256: str = ""
    tokenizer_sha256: str = ""
    architecture: str = ""
    """What the same weights may be computed with in another way, in words."""


class DualEncoder(ShownInShort, ABC):
    """An image tower and a text tower into one space; frozen, stateless, in evaluation mode.

    Prompt tokens are arguments, never state: student, teacher and zero-shot share one encoder in memory.
    """

    info: EncoderInfo
    found_by_source: ClassVar[bool] = False
    """Whether `apd.load_clip` reads it from ``info.source`` as a name, a hub id or a folder, rather than calling its class."""

    def shown(self) -> dict[str, str]:
        """Return what sets this CLIP model apart from others."""
        info = self.info
        return {
            "source": info.source or "in memory",
            "family": info.family,
            "images": f"{info.image_size} px",
            "image tower": f"{info.visual_depth} blocks of {info.visual_width}",
            "text tower": f"{info.text_depth} blocks of {info.text_width}, {info.context_length} tokens",
            "on": str(self.device),
        }

    @abstractmethod
    def encode_image(self, x: Tensor, tokens: Tokens = ()) -> Tensor:
        """Image features (B, embed_dim), not of unit length.

        Args:
            x: images (B, 3, S, S) in [0,1] with S = ``info.image_size``; normalised inside.
            tokens: visual tokens, (n, visual_width) per block; appended after the patches and taken off after the last block.
        """

    def encode_image_by_block(self, x: Tensor, tokens: Tokens = ()) -> tuple[Tensor, Tensor]:
        """The features of `encode_image`, and the states (depth, B, visual_width) of the class token after each block.

        Raises:
            InputError: an encoder without a class token, or one that does not show its blocks.
        """
        raise InputError(
            f"method.block_states compares the class token after each block, which {self.info.source or 'this encoder'} does not "
            "have or show; leave it out."
        )

    @abstractmethod
    def encode_text(self, ids: Tensor, tokens: Tokens = ()) -> Tensor:
        """Text features (C, embed_dim), not of unit length.

        Args:
            ids: token ids (C, L) on any device, from `prompt_ids` where there are prompt tokens.
            tokens: text tokens, (n, text_width) or (C, n, text_width) per block; they replace the first n rows after the
                start token (from row 0 where the family has none).
        """

    @abstractmethod
    def prompt_ids(self, texts: Sequence[str], n_tokens: int = 0) -> Tensor:
        """Token ids (C, context_length) of ``texts``, with room for ``n_tokens`` prompt tokens in front of each.

        Raises:
            InputError: where a text does not fit into the context; it is never cut.
        """

    def trim(self, ids: Tensor) -> Tensor:
        """Leave out the columns of ``ids`` that cannot matter: after the longest end token of a causal tower; else none."""
        return ids

    def word_states(self, words: str, n_tokens: int) -> list[Tensor]:
        """Return what the original text tower holds of the first ``n_tokens`` tokens of ``words``, block by block.

        Entry 0 (m, text_width) are the token embeddings, entry d the rows that enter block d; m <= n_tokens. In a causal
        tower these do not depend on what follows, so prompts that start here start as the hand-written prompt. By default
        there are none, and text prompts start at random.
        """
        return []

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever is asked for: a frozen encoder has no dropout."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU if there are none."""
        first = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    def check_pixels(self, x: Tensor) -> None:
        """Refuse what is not a batch of encoder-sized float images.

        Raises:
            InputError: not a tensor, wrong shape or integer pixels.
        """
        if not isinstance(x, Tensor):
            raise InputError(
                f"Images must be a torch.Tensor, got {type(x).__name__}. Make one of an image file with "
                "torch.tensor(read_image(path, classifier.encoder.info.preprocessing))[None] / 255, where read_image is of "
                "apd.data.decode, of an array with torch.from_numpy(array)."
            )
        side = self.info.image_size
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, side, side):
            raise InputError(
                f"Images must have shape (batch, 3, {side}, {side}) for {self.info.source}, got {tuple(x.shape)}. "
                "Resize a PIL image with classifier.encoder.info.preprocessing.apply(image) first."
            )
        if not x.is_floating_point():
            raise InputError(f"Images must be floats in [0,1], got {x.dtype}. Divide uint8 pixels by 255.")
