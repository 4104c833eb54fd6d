"""The images under evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from apd.data.dataset import Decoded
from apd.evaluation.store import Key


def hash_of_keys(keys: Sequence[Key]) -> str:
    """Hash ids, fingerprints of pixels and labels, in their order."""
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Samples:
    """Decoded images under evaluation, told apart by id, pixels and label."""

    decoded: Decoded

    def __len__(self) -> int:
        return len(self.decoded)

    @cached_property
    def keys(self) -> list[Key]:
        """Id, fingerprint of the pixels and label, one per sample."""
        images = self.decoded.images.cpu().contiguous()
        prints = (hashlib.blake2b(image.numpy().tobytes(), digest_size=8).hexdigest() for image in images)
        return list(zip(self.decoded.ids, prints, self.decoded.labels.tolist(), strict=True))

    @property
    def sha256(self) -> str:
        """A hash of all keys."""
        return hash_of_keys(self.keys)

    def batch(self, index: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, list[str]]:
        """Images in [0,1], labels and ids at ``index``."""
        where = torch.tensor(index)
        images = self.decoded.images[where].to(device)
        x = images.float() if images.is_floating_point() else images.float() / 255
        return x, self.decoded.labels[where].to(device), [self.decoded.ids[i] for i in index]
