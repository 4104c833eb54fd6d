"""Lines of ``metrics.jsonl``, and of TensorBoard if asked."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from apd.runs.folder import Run


class Log:
    """Writes what was measured where the run keeps it.

    Args:
        run: whose metrics are written; None: nothing is.
        batches: optimiser steps in an epoch.
        tensorboard: also write TensorBoard events.
    """

    def __init__(self, run: Run | None, batches: int, tensorboard: bool) -> None:
        self.run, self.batches = run, batches
        self.last: dict[str, float] = {}
        self.last_terms: dict[str, float] = {}
        self.tensorboard = tensorboard
        self._board: Any = None

    def terms(self, terms: dict[str, Tensor], done: int) -> dict[str, float]:
        """Write a line with the loss terms (this process's share of the batch)."""
        self.last_terms = {name: float(value.detach()) for name, value in terms.items()}
        self.last = {"loss": sum(self.last_terms.values()), **self.last_terms}
        seconds = {"seconds": self.run.seconds} if self.run else {}
        self.write({"step": done, "epoch": done / self.batches, **self.last, **seconds})
        return self.last_terms

    def write(self, record: dict[str, Any]) -> None:
        """Write a line."""
        if not self.run:
            return
        self.run.log(record)
        if self.tensorboard:
            board = self._events(self.run)
            for name, value in record.items():
                if isinstance(value, float):
                    board.add_scalar(name, value, record["step"])
            board.flush()

    def _events(self, run: Run) -> Any:
        """Opened after the first line of metrics, which makes the folder of a new run."""
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run.path / "tensorboard"))
        return self._board
