"""A server for a run: images in over HTTP, classes with calibrated probabilities out (`apd serve`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apd.serve.settings import ServeSettings
from apd.util.extras import import_extra
from apd.util.files import AnyPath

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["ServeSettings", "create_app"]

_PACKAGES = ("fastapi", "prometheus_client", "python_multipart", "uvicorn")


def check_installed() -> None:
    """Check that the packages of the extra ``serve`` are there.

    Raises:
        InputError: one is not.
    """
    for package in _PACKAGES:
        import_extra(package, "serve", "apd serve")


def create_app(
    run: AnyPath, settings: ServeSettings | None = None, *, model: str | None = None, device: str = "cpu"
) -> FastAPI:
    """Make the web application that serves a run; its classes, and their features, are fixed from here on.

    Args:
        run: the folder of a finished run.
        settings: limits, batching and abstention; None for the defaults.
        model: where the run's CLIP model is now, if it has moved since.
        device: cpu, cuda, cuda:1 or mps.

    Returns:
        An ASGI application for any server, such as uvicorn.

    Raises:
        InputError: not a finished run, another CLIP model than the run's, packages that are not installed.

    Example:
        >>> import apd.serve
        >>> app = apd.serve.create_app("runs/digits")  # doctest: +SKIP
    """
    check_installed()
    from apd.runs.folder import Run
    from apd.runs.load import load_run
    from apd.serve.app import build
    from apd.serve.model import Served
    from apd.util.threads import on_passing_thread

    opened = Run.open(run)
    served = on_passing_thread(lambda: Served(load_run(run, model=model, device=device), opened.calibration))
    return build(served, settings or ServeSettings())
