"""Dynamic batching: images of all requests that wait share one call of the model."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from apd.serve.metrics import Metrics
from apd.serve.model import Pixels
from apd.serve.refused import BUSY, STOPPED, Refused

Model = Callable[[Sequence[Pixels]], list[list[float]]]


@dataclass(frozen=True)
class _Waiting:
    """An image that waits for its probabilities."""

    pixels: Pixels
    answer: Future[list[float]] = field(default_factory=Future)


class Batcher:
    """One thread that owns the model and takes what has come in, up to ``most`` images at a time.

    While the model works, images pile up and make the next batch; so the batches grow with the load, and ``wait`` matters
    only where there is little of it.

    Args:
        model: images to probabilities, called by this thread alone.
        most: images at a time.
        wait: seconds that the first image of a batch waits for others.
        queued: images that may wait; further ones are refused.
        metrics: told of each batch.
    """

    def __init__(self, model: Model, most: int, wait: float, queued: int, metrics: Metrics) -> None:
        self._model, self._most, self._wait, self._queued, self._metrics = model, most, wait, queued, metrics
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._closed, self._thread = True, threading.Thread()
        self.open()

    @property
    def alive(self) -> bool:
        """Whether images are answered."""
        return self._thread.is_alive() and not self._closed

    def open(self) -> None:
        """Start, or start again after `close`, and in a process that was forked, which has no threads of the first one."""
        if not self.alive:
            self._closed, self._queue = False, queue.SimpleQueue()
            self._thread = threading.Thread(target=self._run, name="apd-model", daemon=True)
            self._thread.start()

    def waiting(self) -> int:
        """Images that wait for the model."""
        return self._queue.qsize()

    async def classify(self, images: Sequence[Pixels]) -> list[list[float]]:
        """Probabilities of the images of a request, in their order.

        Raises:
            Refused: too many images wait already, or the server is stopping or has no thread.
        """
        if not (self.alive or self._closed):
            raise Refused(503, STOPPED)
        if self._closed or self._queue.qsize() + len(images) > self._queued:
            raise Refused(503, BUSY)
        waiting = [_Waiting(pixels) for pixels in images]
        for one in waiting:
            self._queue.put(one)
        return await asyncio.gather(*(asyncio.wrap_future(one.answer) for one in waiting))

    def close(self) -> None:
        """Answer what waits, then stop."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, more = self._gather(first)
            # False where the request has been given up meanwhile.
            batch = [one for one in batch if one.answer.set_running_or_notify_cancel()]
            if batch:
                self._answer(batch)
            if not more:
                return

    def _gather(self, first: _Waiting) -> tuple[list[_Waiting], bool]:
        """Return the images of the next batch, and whether more may come."""
        batch, end = [first], time.monotonic() + self._wait
        while len(batch) < self._most:
            try:
                one = self._queue.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            if one is None:
                return batch, False
            batch.append(one)
        return batch, True

    def _answer(self, batch: list[_Waiting]) -> None:
        started = time.perf_counter()
        try:
            found = self._model([one.pixels for one in batch])
        except Exception as error:
            for one in batch:
                one.answer.set_exception(error)
            return
        self._metrics.batch(len(batch), time.perf_counter() - started)
        for one, values in zip(batch, found, strict=True):
            one.answer.set_result(values)
