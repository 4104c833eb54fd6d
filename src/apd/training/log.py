"""Lines of ``metrics.jsonl``, and the same for trackers of experiments if asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from apd.runs.folder import Run


class Log:
    """Writes what was measured where the run keeps it.

    Args:
        run: whose metrics are written; None: nothing is.
        batches: optimiser steps in an epoch.
        start: starts the trackers that get the metrics too.
    """

    def __init__(self, run: Run | None, batches: int, start: Callable[[], list[Any]] = list) -> None:
        self.run, self.batches, self.start = run, batches, start
        self.last: dict[str, float] = {}
        self._trackers: list[Any] | None = None

    def terms(self, terms: dict[str, Tensor], done: int) -> dict[str, float]:
        """Write a line with the loss terms (this process's share of the batch)."""
        values = {name: float(value.detach()) for name, value in terms.items()}
        self.last = {"loss": sum(values.values()), **values}
        seconds = {"seconds": self.run.seconds} if self.run else {}
        self.write({"step": done, "epoch": done / self.batches, **self.last, **seconds})
        return values

    def write(self, record: dict[str, Any]) -> None:
        """Write a line."""
        if not self.run:
            return
        self.run.log(record)
        # Started after the first line of metrics, which makes the folder of a new run.
        if self._trackers is None:
            self._trackers = self.start()
        values = {name: value for name, value in record.items() if isinstance(value, float)}
        for tracker in self._trackers:
            tracker.log(values, step=record["step"])

    def close(self) -> None:
        """End the trackers' own runs."""
        for tracker in self._trackers or ():
            tracker.finish()
