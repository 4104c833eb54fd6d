"""Which images make up each batch of a training."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from apd.settings.train import TrainSettings
from apd.training.pool import Pool
from apd.util.seeds import shuffled

KEPT = 8
"""Rounds whose order is remembered: more than the batches that are looked at together reach into."""


class Order:
    """The images of each batch: all of them once per epoch, or a fixed share of labelled ones in every batch.

    With ``train.labelled_share`` an epoch is one pass over the unlabelled images; labelled ones come round as often as it takes.

    Args:
        pool: labelled images first, then unlabelled ones.
        settings: batch size, share and seed.
        at_least: a last batch with fewer images takes some of the one before it; it is left out where that one then has fewer.
    """

    def __init__(self, pool: Pool, settings: TrainSettings, at_least: int = 1) -> None:
        size, own = settings.batch_size, len(pool.labelled)
        # No image twice in a batch, where it would have the same crop and the same random start.
        fill = min(labelled_per_batch(settings), own)
        self._skip = own if fill else 0
        passed = pool.ids[self._skip :]
        parts = [range(i, min(i + size - fill, len(passed))) for i in range(0, len(passed), size - fill)]
        if len(parts) > 1 and len(parts[-1]) < at_least <= len(parts[-2]) + len(parts[-1]) - at_least:
            start = parts[-1].stop - at_least
            parts[-2:] = [range(parts[-2].start, start), range(start, parts[-1].stop)]
        fills = [max(1, round(fill * len(part) / (size - fill))) if fill else 0 for part in parts]
        kept = [(part, n) for part, n in zip(parts, fills, strict=True) if len(part) + n >= at_least]
        self._parts = [part for part, _ in kept]
        # Two epochs, as the first batches of the next one are decoded during the last of this one.
        self._order = lru_cache(maxsize=2)(lambda epoch: shuffled(passed, settings.seed, "order", epoch))
        self._rounds = Rounds(pool.ids[:own], settings.seed, [n for _, n in kept])

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._parts)

    def chosen(self, number: int) -> list[int]:
        """Return the images of batch ``number``, counted from the start of training, as positions in the pool."""
        epoch, index = divmod(number, len(self))
        order = self._order(epoch)
        return [*(self._skip + order[i] for i in self._parts[index]), *self._rounds.chosen(number)]


class Rounds:
    """The labelled images of each batch, round after round: each once in a round, and at most once in a batch.

    Where a batch reaches over the end of a round, the next round begins with images that are not in the batch yet; otherwise
    each round is an order drawn by the seed. So what a batch holds follows from its number alone.

    Args:
        ids: one per labelled image, by which the seed draws their order.
        seed: draws the rounds.
        counts: labelled images of each batch of an epoch, at most all of them.
    """

    def __init__(self, ids: Sequence[str], seed: int, counts: Sequence[int]) -> None:
        self._ids, self._seed = ids, seed
        self._filled = list(accumulate(counts, initial=0))
        self._kept: dict[int, list[int]] = {}

    def chosen(self, number: int) -> list[int]:
        """Return the labelled images of batch ``number``, as positions in the pool."""
        epoch, index = divmod(number, len(self._filled) - 1)
        start = epoch * self._filled[-1]
        places = range(start + self._filled[index], start + self._filled[index + 1])
        return [self._round(i // len(self._ids))[i % len(self._ids)] for i in places]

    def _round(self, turn: int) -> list[int]:
        """The order of a round; one that begins within a batch follows from the round before it."""
        if turn not in self._kept:
            first = turn
            while first - 1 not in self._kept and self._over(first)[0]:
                first -= 1
            for later in range(first, turn + 1):
                self._kept[later] = self._made(later)
                self._kept.pop(later - KEPT, None)
        return self._kept[turn]

    def _made(self, turn: int) -> list[int]:
        order = shuffled(self._ids, self._seed, "labelled", turn)
        before, after = self._over(turn)
        if not before:
            return order
        used = set(self._kept[turn - 1][-before:])
        fresh = [i for i in order if i not in used][:after]
        begun = set(fresh)
        return [*fresh, *(i for i in order if i not in begun)]

    def _over(self, turn: int) -> tuple[int, int]:
        """How many images the batch at the start of a round has of the round before, and of this one."""
        place = turn * len(self._ids) % self._filled[-1]
        index = bisect_right(self._filled, place)
        return place - self._filled[index - 1], self._filled[index] - place


def labelled_per_batch(settings: TrainSettings) -> int:
    """Return how many labelled images ``train.labelled_share`` wants in a batch; 0 without it."""
    size, share = settings.batch_size, settings.labelled_share
    return 0 if share is None else min(max(round(share * size), 1), size - 1)
