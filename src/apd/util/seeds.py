"""Stateless randomness: every draw follows from a key and a sample's id, never from a generator's state."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor


def sample_seeds(ids: Sequence[str], *context: str | int) -> Tensor:
    """Return one seed per sample (N,) int64, from its id and the context (run seed, purpose, epoch, ...) alone.

    Equal on every machine, in every process and in every batch (Python's own ``hash`` is not).

    >>> sample_seeds(["cat/1.png"], 0).item() == sample_seeds(["dog/7.png", "cat/1.png"], 0)[1].item()
    True
    """
    prefix = "\0".join(map(str, context)) + "\0"
    digests = (hashlib.blake2b((prefix + id_).encode(errors="surrogateescape"), digest_size=8).digest() for id_ in ids)
    # 62 bits: room to add a small number.
    return torch.tensor([int.from_bytes(digest, "big") >> 2 for digest in digests], dtype=torch.int64)


def own_random_numbers(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which torch's random numbers may be drawn and seeded; those outside go on as if nothing had been."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def shuffled(ids: Sequence[str], *key: object) -> list[int]:
    """Return the indices of ``ids`` in a random order that ``key`` decides, equal on every machine.

    Ordered by the hash of key and id, so that one id more or less leaves the order of the others unchanged.

    >>> shuffled(["a", "b", "c"], 0) == shuffled(["a", "b", "c"], 0)
    True
    """
    prefix = "/".join(str(part) for part in key)

    def rank(index: int) -> bytes:
        return hashlib.sha256(f"{prefix}/{ids[index]}".encode(errors="surrogateescape")).digest()

    return sorted(range(len(ids)), key=rank)
