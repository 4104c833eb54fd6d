"""What every attack shares: the objective it maximises, the form it has, and where its randomness comes from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from apd.attacks.threat import ThreatModel


@dataclass(frozen=True)
class Objective:
    """What an attack maximises: ``loss(forward(x), target)``, one value a sample.

    Args:
        forward: pixels (B,3,H,W) in [0,1] to outputs (B,...): logits, or features.
        loss: outputs and targets to a loss a sample (B,).
        target: (B,...), what the loss compares with: labels, soft labels, clean features.
    """

    forward: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    target: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Loss a sample (B,) at the images ``x`` (B,3,H,W)."""
        return self.loss(self.forward(x), self.target)

    def select(self, index: Tensor) -> Objective:
        """The same objective for the samples at ``index`` only."""
        return Objective(self.forward, self.loss, self.target[index])


class Watch:
    """Follows an evaluation attack part by part; this base class does nothing with what it is told.

    Args:
        done: parts that all samples of the batch withstood in an earlier call; the attack skips them.
    """

    def __init__(self, done: Sequence[str] = ()) -> None:
        self.done = tuple(done)

    def begin(self, part: str) -> None:
        """Take note that a part begins."""

    def end(self, part: str, ids: Sequence[str], predicted: Tensor, flags: Counter[str]) -> None:
        """Take note of what a part did; not called for the last part, whose results the attack returns.

        Args:
            part: its name.
            ids: the samples it was given.
            predicted: their classes (len(ids),) on the images it found.
            flags: warnings of the attack's library that were raised since the last part ended.
        """


UNWATCHED = Watch()


class Attack(Protocol):
    """An attack finds, within the threat model, images of high objective."""

    def __call__(self, objective: Objective, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        """Adversarial images (B,3,H,W) for the images ``x`` in [0,1]; ``seeds`` (B,) int64, one a sample."""
        ...


def sample_seeds(ids: Sequence[str], *context: str | int) -> Tensor:
    """One seed a sample (N,) int64, from its id and the context (run seed, purpose, epoch, ...) alone.

    The same on every machine, in every process and in every batch (Python's own ``hash`` is not).

    >>> sample_seeds(["cat/1.png"], 0).item() == sample_seeds(["dog/7.png", "cat/1.png"], 0)[1].item()
    True
    """
    prefix = "\0".join(map(str, context)) + "\0"
    digests = (hashlib.blake2b((prefix + id_).encode(errors="surrogateescape"), digest_size=8).digest() for id_ in ids)
    # 62 bits: room to add the number of a restart.
    return torch.tensor([int.from_bytes(digest, "big") >> 2 for digest in digests], dtype=torch.int64)
