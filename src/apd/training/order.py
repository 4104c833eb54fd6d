"""Which images make up each batch of a training."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate

from apd.settings.train import TrainSettings
from apd.training.pool import Pool
from apd.util.seeds import shuffled


class Order:
    """The images of each batch: all of them once per epoch, or a fixed share of labelled ones in every batch.

    With ``train.labelled_share`` an epoch is one pass over the unlabelled images; labelled ones come round as often as it takes.

    Args:
        pool: labelled images first, then unlabelled ones.
        settings: batch size, share and seed.
        at_least: batches with fewer images are left out.
    """

    def __init__(self, pool: Pool, settings: TrainSettings, at_least: int = 1) -> None:
        size, own, share = settings.batch_size, len(pool.labelled), settings.labelled_share
        # No image twice in a batch, where it would have the same crop and the same random start.
        fill = 0 if share is None else min(max(round(share * size), 1), size - 1, own)
        self._own, self._skip = own, own if fill else 0
        passed = pool.ids[self._skip :]
        parts = [range(i, min(i + size - fill, len(passed))) for i in range(0, len(passed), size - fill)]
        fills = [max(1, round(fill * len(part) / (size - fill))) if fill else 0 for part in parts]
        kept = [(part, n) for part, n in zip(parts, fills, strict=True) if len(part) + n >= at_least]
        self._parts = [part for part, _ in kept]
        self._filled = list(accumulate((n for _, n in kept), initial=0))
        # Two epochs, as the first batches of the next one are decoded during the last of this one.
        self._order = lru_cache(maxsize=2)(lambda epoch: shuffled(passed, settings.seed, "order", epoch))
        self._round = lru_cache(maxsize=2)(lambda n: shuffled(pool.ids[:own], settings.seed, "labelled", n))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._parts)

    def chosen(self, number: int) -> list[int]:
        """Return the images of batch ``number``, counted from the start of training, as positions in the pool."""
        epoch, index = divmod(number, len(self))
        order = self._order(epoch)
        found = [self._skip + order[i] for i in self._parts[index]]
        start = epoch * self._filled[-1]
        for i in range(start + self._filled[index], start + self._filled[index + 1]):
            turn, place = divmod(i, self._own)
            found.append(self._round(turn)[place])
        return found
