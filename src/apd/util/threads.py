"""Threads that a model is loaded on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


def on_passing_thread(load: Callable[[], T]) -> T:
    """Call ``load`` on a thread that ends with it, where a model is loaded on one thread and answers on another.

    Each thread that has computed in parallel holds OpenMP workers of its own until it ends. The idle ones of the thread that
    loaded count: with more workers than cores OpenMP lets all of them sleep between two operations, which slows the thread that
    answers.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="apd-load") as pool:
        return pool.submit(copy_context().run, load).result()
