"""Threads that a model is loaded on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def on_passing_thread(load: Callable[[], T]) -> T:
    """Call ``load`` on a thread that ends with it, where a model is loaded on one thread and answers on another.

    Each thread that has computed in parallel holds OpenMP workers of its own until it ends. The idle ones of the thread that
    loaded count: with more workers than cores OpenMP lets all of them sleep between two operations, which slows the thread that
    answers. Ctrl-C does not wait for the loading.
    """
    found: Future[T] = Future()
    context = copy_context()

    def work() -> None:
        try:
            found.set_result(context.run(load))
        except BaseException as error:
            found.set_exception(error)

    thread = Thread(target=work, name="apd-load", daemon=True)
    thread.start()
    while thread.is_alive():  # not one long wait: a signal that comes just before it would wait too
        thread.join(0.2)
    return found.result()
