"""`apd.util.threads`: a model is loaded on a thread that is gone when it answers."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import apd.runs.load
from apd.util.threads import on_passing_thread


def test_work_is_done_on_a_thread_that_has_ended() -> None:
    worked = on_passing_thread(threading.current_thread)
    assert worked is not threading.current_thread()
    assert not worked.is_alive()


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        on_passing_thread(lambda: 1 / 0)


@pytest.mark.parametrize("where", ["serve", "explore"])
def test_server_and_explorer_load_on_such_a_thread(where: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    from apd.explore import explorer
    from apd.serve import create_app

    threads, load = [], apd.runs.load.load_run

    def watched(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.current_thread())
        return load(*args, **kwargs)

    monkeypatch.setattr(apd.runs.load, "load_run", watched)
    monkeypatch.setattr(explorer, "load_run", watched)
    if where == "serve":
        create_app(trained)
    else:
        explorer.Explorer.open(trained)
    assert len(threads) == 1 and not threads[0].is_alive()


def test_ctrl_c_does_not_wait_for_the_loading() -> None:
    begun, released, loaded = threading.Event(), threading.Event(), threading.Event()

    def load() -> None:
        begun.set()
        released.wait(10)
        loaded.set()

    def interrupt() -> None:
        begun.wait(60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    # A shell starts what runs in its background with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            on_passing_thread(load)
        assert not loaded.is_set()
    finally:
        signal.signal(signal.SIGINT, before)
        released.set()
