"""Image passes in parts, where a whole batch does not fit in memory.

The graph of a part is thrown away and made again when its gradient is due, so that only one part's is there at a time. What is
computed stays what it was, but for the order in which the gradients of the prompts are summed up; it takes one more pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apd.util.memory import Room

_room: ContextVar[Room | None] = ContextVar("room", default=None)

Found = TypeVar("Found", Tensor, tuple[Tensor, Tensor])


@contextmanager
def within(room: Room) -> Iterator[None]:
    """Let every image tower of ours keep to this room in this block, and find out what fits."""
    token = _room.set(room)
    try:
        yield
    finally:
        _room.reset(token)


def at_once(x: Tensor) -> bool:
    """Whether these images go through at once, or else not at all: a graph is being made, and they are known to fit."""
    if torch.compiler.is_exporting():  # the length of a batch that is free must not be looked at
        return True
    room = _room.get()
    return torch.is_grad_enabled() and (room is None or room.most is None or len(x) <= room.most)


def in_parts(
    encode: Callable[[Tensor, Sequence[Tensor]], Found], x: Tensor, tokens: Sequence[Tensor], dims: Sequence[int]
) -> Found:
    """Return ``encode(x, tokens)``, computed in parts where the memory is too small for a whole batch.

    Out of memory while a graph is made is passed on: who holds the rest of the graph has to begin again (`Room.attempts`).

    Args:
        encode: an image tower: each image for itself.
        x: images (B,3,S,S).
        tokens: its prompts.
        dims: where the batch is in what it returns, one for each tensor.
    """
    if at_once(x):
        return encode(x, tokens)
    room = _room.get() or Room()
    if torch.is_grad_enabled():
        return _joined(encode, x, tokens, dims, room.most or len(x))
    for attempt in room.attempts(len(x)):
        with attempt:
            if room.most is None or len(x) <= room.most:
                return encode(x, tokens)
            return _joined(encode, x, tokens, dims, room.most)
    raise AssertionError  # an attempt returns or raises


def _joined(
    encode: Callable[[Tensor, Sequence[Tensor]], Found],
    x: Tensor,
    tokens: Sequence[Tensor],
    dims: Sequence[int],
    most: int,
) -> Found:
    found = [_again(encode, part, tokens) for part in torch.split(x, most)]
    if isinstance(found[0], Tensor):
        return torch.cat(found, dim=dims[0])
    return tuple(torch.cat(parts, dim=dim) for parts, dim in zip(zip(*found, strict=True), dims, strict=True))  # type: ignore[return-value]


class InParts(nn.Module):
    """Any classifier from pixels (B,3,S,S) to logits (B,C), given a few images at a time.

    Args:
        model: judges each image for itself.
        most: images at a time.
    """

    def __init__(self, model: nn.Module, most: int) -> None:
        super().__init__()
        self.model, self.most = model, most
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of images (B,3,S,S)."""
        return torch.cat([_again(self.model, part) for part in torch.split(x, self.most)])


def _again(function: Callable[..., Found], *arguments: object) -> Found:
    found: Found = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return found
