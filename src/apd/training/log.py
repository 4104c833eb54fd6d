"""Lines of ``metrics.jsonl``, and of TensorBoard if asked."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from apd.run import Run


class Log:
    """Writes what was measured where the run keeps it.

    Args:
        run: whose metrics are written; None: nothing is.
        batches: optimiser steps in an epoch.
        tensorboard: also write TensorBoard events.
    """

    def __init__(self, run: Run | None, batches: int, tensorboard: bool) -> None:
        self.run, self.batches, self.started = run, batches, time.monotonic()
        self.last: dict[str, float] = {}
        self.last_terms: dict[str, float] = {}
        self.board: Any = None
        if tensorboard and run:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(run.path / "tensorboard"))

    def terms(self, terms: dict[str, Tensor], done: int) -> dict[str, float]:
        """Write a line with the loss terms (this process's share of the batch)."""
        self.last_terms = {name: float(value.detach()) for name, value in terms.items()}
        self.last = {"loss": sum(self.last_terms.values()), **self.last_terms}
        self.write(
            {"step": done, "epoch": done / self.batches, **self.last, "seconds": time.monotonic() - self.started}
        )
        return self.last_terms

    def write(self, record: dict[str, Any]) -> None:
        """Write a line."""
        if self.run:
            self.run.log(record)
        if self.board is not None:
            for name, value in record.items():
                if isinstance(value, float):
                    self.board.add_scalar(name, value, record["step"])
            self.board.flush()
