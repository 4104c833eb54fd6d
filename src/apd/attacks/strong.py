"""``strong``: AutoAttack, and after it what finds other weaknesses."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from apd.attacks.autoattack import LibraryAttack
from apd.attacks.bpda import StraightThrough
from apd.attacks.evaluation import (
    UNWATCHED,
    AttackBatch,
    Cascade,
    EvaluationAttack,
    Found,
    Restarted,
    Surroundings,
    Watch,
    answers,
)
from apd.attacks.minimal import FMN
from apd.attacks.targeted import MultiTargeted
from apd.attacks.threat import ThreatModel
from apd.attacks.transfer import Transfer

_FIRST = LibraryAttack("autoattack", followed=True)


@dataclass(frozen=True)
class Strong(EvaluationAttack):
    """AutoAttack on the whole batch, then each further part on what still stands.

    AutoAttack comes first and sees what it would see alone, in batches of the same size, so that it finds the same images: by
    construction `Strong` never leaves more of them.

    Args:
        parts: what follows AutoAttack.
        name: what it is called in a result.
    """

    parts: tuple[EvaluationAttack, ...] = (
        Restarted(),
        MultiTargeted(),
        FMN(),
        StraightThrough(only_if_blocked=True),
    )
    name: str = "strong"

    def prepared(self, surroundings: Surroundings) -> Strong:
        """Prepare its parts; where there is a zero-shot CLIP, images made on it are shown last."""
        parts = (*self.parts, Transfer("zero-shot")) if surroundings.has_zero_shot else self.parts
        return replace(self, parts=tuple(part.prepared(surroundings) for part in parts))

    def depends_on(self) -> dict[str, str]:
        """Return what its parts depend on."""
        return self._rest.depends_on()

    def runs(self, n_classes: int) -> tuple[str, ...]:
        """Return the names of the attacks it is made of."""
        return (*_FIRST.runs(n_classes), *self._rest.runs(n_classes))

    def part_passes(self, n_classes: int) -> tuple[int, ...]:
        """Return the model passes per batch of each part if no sample is fooled; one with a gradient counts twice."""
        return (*_FIRST.part_passes(n_classes), *self._rest.part_passes(n_classes))

    @property
    def _rest(self) -> Cascade:
        return Cascade(self.name, self.parts)

    def __call__(self, model: nn.Module, batch: AttackBatch, threat: ThreatModel, watch: Watch = UNWATCHED) -> Found:
        """Attack ``batch`` part by part."""
        first = _FIRST(model, batch, threat, watch)
        robust = (answers(model, first.images) == batch.labels).nonzero().squeeze(1)
        if len(robust) == 0:
            return first
        rest = self._rest(model, batch.select(robust), threat, watch)
        images, by = first.images, first.by
        images[robust] = rest.images
        for i, name in zip(robust.tolist(), rest.by, strict=True):
            by[i] = name
        return Found(images, by, first.flags + rest.flags)
