"""Several evaluation attacks as one: cheap ones first, each on what still stands."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from apd.attacks.autoattack import Found
from apd.attacks.base import UNWATCHED, Watch
from apd.attacks.threat import ThreatModel

if TYPE_CHECKING:
    from apd.attacks import EvaluationAttack


class _Inside(Watch):
    """Watches one part of a cascade, which itself tells where the part ends."""

    def __init__(self, outer: Watch) -> None:
        super().__init__()
        self.outer = outer

    def begin(self, part: str) -> None:
        """Pass it on."""
        self.outer.begin(part)


@dataclass(frozen=True)
class Cascade:
    """The per-sample worst case over ``parts``, at the price of the first that fools.

    Args:
        name: what it is called in a result.
        parts: in order, the cheapest first.
    """

    name: str
    parts: tuple[EvaluationAttack, ...]

    def runs(self, n_classes: int) -> tuple[str, ...]:
        """The attacks it is made of, for so many classes."""
        return tuple(run for part in self.parts for run in part.runs(n_classes))

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Passes of the model on a batch in each part, if no sample falls; one with a gradient counts twice."""
        return tuple(sum(part.part_passes(n_classes)) + 1 for part in self.parts)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        ids: list[str],
        seed: int,
        watch: Watch = UNWATCHED,
    ) -> Found:
        """Attack images ``x`` (B,3,H,W) in [0,1] that ``model`` classifies as ``labels`` (B,); ``watch`` follows its parts."""
        images, by, flags = x.clone(), [""] * len(x), Counter[str]()
        standing = torch.arange(len(x), device=x.device)
        for part in self.parts:
            if len(standing) == 0:
                break
            if part.name in watch.done:
                continue
            index = standing.tolist()
            found = part(model, x[standing], labels[standing], threat, [ids[i] for i in index], seed, _Inside(watch))
            images[standing] = found.images
            flags += found.flags
            for i, name in zip(index, found.by, strict=True):
                by[i] = name
            with torch.no_grad():
                predicted = model(found.images).argmax(dim=-1)
            if part is not self.parts[-1]:
                watch.end(part.name, [ids[i] for i in index], predicted, found.flags)
            standing = standing[predicted == labels[standing]]
        return Found(images, by, flags)
