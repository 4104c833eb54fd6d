"""Progress of a bench: a live table on a terminal; elsewhere one line per run, and periodic lines between them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from apd.bench.job import Outcome, Report
from apd.bench.plan import Plan
from apd.util.messages import get_logger
from apd.util.progress import Count, Progress, clock, counted, pretty_seconds
from apd.util.text import printable

if TYPE_CHECKING:
    from rich.table import Table

log = get_logger("apd.bench")


class BenchProgress(Count):
    """Count runs by protocol and data set, and predict the time left.

    Args:
        plan: all runs.
        expected: estimated seconds of each job to do, in the order in which jobs are begun.
        workers: number of jobs at a time.
    """

    def __init__(self, plan: Plan, expected: Mapping[str, float], workers: int) -> None:
        super().__init__(len(expected), "runs", now=lambda: time.monotonic())
        self.plan, self.expected, self.workers = plan, dict(expected), max(1, workers)
        self.open, self.failed = set(expected), set[str]()
        self.begun = dict.fromkeys(list(expected)[: self.workers], self.started)
        self.foretold = self.took = 0.0
        self.display = Progress("", self, keep=True, table=self._table)

    def __enter__(self) -> BenchProgress:
        self.display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.display.__exit__(kind, error, trace)

    def finished(self, report: Report) -> None:
        """Record a run that ended."""
        now = self.now()
        self.advance()
        self.open.discard(report.job)
        if report.outcome is None:
            self.failed.add(report.job)
        else:  # a failed run says nothing of the pace
            self.foretold += self.expected[report.job]
            self.took += now - self.begun.get(report.job, self.started)
        waiting = next((job for job in self.expected if job not in self.begun), None)
        if waiting is not None:
            self.begun[waiting] = now
        log.info(self._line(report))

    def seconds_left(self) -> float:
        """Sum the estimates of open runs at the pace of finished ones, less the time that running ones have had.

        Until a run is finished, the estimates are not corrected.
        """
        now, open_ = self.now(), list(self.open)  # a copy: another thread may ask while a run ends
        pace = self.took / self.foretold if self.foretold else 1.0
        left = [max(0.0, pace * self.expected[job] - (now - self.begun.get(job, now))) for job in open_]
        return max(sum(left) / self.workers, *left, 0.0)  # a run is one worker's

    def left(self) -> str:
        """Say how long the rest may take."""
        return f"; about {pretty_seconds(self.seconds_left())} left" if self.open else ""

    def __str__(self) -> str:
        """Say how many runs are done, after what time, and how long the others may take."""
        return f"[{self.done}/{self.total}] at work for {clock(self.now() - self.started)}{self.left()}"

    def _line(self, report: Report) -> str:
        label = self.plan.jobs[report.job].label
        what = f"FAILED, {report.error}" if report.outcome is None else _summary(report.outcome)
        return f"[{self.done}/{self.total}] {label}: {what}{self.left()}"

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        left = pretty_seconds(self.seconds_left())
        runs, workers = counted(len(self.open), "run"), counted(self.workers, "worker")
        title = f"{self.plan.suite}: {runs} to do by {workers}, about {left} left"
        table = Table("protocol", "data", title=Text(printable(title), "table.title"), title_justify="left")
        for name in ("runs", "done", "failed"):
            table.add_column(name, justify="right")
        for protocol, data in dict.fromkeys((row.protocol, row.data) for row in self.plan.rows):
            jobs = [row.job for row in self.plan.rows if (row.protocol, row.data) == (protocol, data)]
            failed, open_ = (sum(job in group for job in jobs) for group in (self.failed, self.open))
            table.add_row(protocol, Text(printable(data)), str(len(jobs)), str(len(jobs) - open_ - failed), str(failed))
        return table


def _summary(outcome: Outcome) -> str:
    """Clean and worst accuracy of the first evaluation."""
    spec = next(iter(outcome.evals.values()))
    return f"clean {spec.accuracy('clean'):.1f}, worst {spec.accuracy('worst'):.1f}"
