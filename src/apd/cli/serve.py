"""`apd serve`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from apd.cli.common import AbstainBelow, Device, MovedModel, quiet_stdout, say, say_calibration


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """End with exit code 0 on SIGTERM, while the model loads too: the first process of a container ignores it otherwise."""
    # Not by an exception, which would be raised wherever loading is, with locks half taken; nothing is written yet.
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def serve(
    run: Annotated[Path, typer.Argument(help="Run folder of apd train.")],
    port: Annotated[int, typer.Option(help="Port; 0 for any free one.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all addresses of this machine.")
    ] = "127.0.0.1",
    model: MovedModel = None,
    device: Device = "auto",
    abstain_below: AbstainBelow = None,
    max_image_mb: Annotated[float, typer.Option(help="Largest image file.")] = 10.0,
    max_images: Annotated[int, typer.Option(help="Most images in a request.")] = 128,
    max_megapixels: Annotated[float, typer.Option(help="Most pixels of an image, in millions.")] = 50.0,
    timeout: Annotated[float, typer.Option(help="Seconds for a request to come in, and again to be answered.")] = 30.0,
    max_batch: Annotated[int, typer.Option(help="Most images the model takes at a time.")] = 32,
    max_wait_ms: Annotated[float, typer.Option(help="How long an image waits for others to share a batch.")] = 5.0,
) -> None:
    """Serve a run over HTTP: POST images to /v1/classify, get classes with probabilities.

    Also /docs, /openapi.json, /v1/model, /healthz, /readyz and /metrics (Prometheus). SIGTERM ends it when what is in flight
    is answered.

    Examples:
      apd serve runs/photos --port 8000
      apd serve runs/photos --host 0.0.0.0 --abstain-below 0.8
      curl -F images=@cat.jpg -F images=@dog.jpg http://127.0.0.1:8000/v1/classify
    """
    from apd.runs.folder import Run
    from apd.serve import ServeSettings, check_installed, create_app

    with _ended_by_sigterm():
        opened = Run.open(run)  # before torch is imported, so that a wrong folder is told at once
        check_installed()
        settings = ServeSettings(
            max_image_mb=max_image_mb,
            max_images=max_images,
            max_megapixels=max_megapixels,
            timeout=timeout,
            max_batch=max_batch,
            max_wait_ms=max_wait_ms,
            abstain_below=abstain_below,
        )
        from apd.serve import server
        from apd.util.device import pick_device
        from apd.util.web_server import listen

        at = listen(host, port)
        with at, quiet_stdout():
            app = create_app(run, settings, model=model, device=pick_device(device))
            say_calibration(opened)
            shown = f"[{host}]" if ":" in host else host
            say(f"Serving {len(opened.manifest['class_names'])} classes on http://{shown}:{at.getsockname()[1]}")
            server.serve(app, at, settings)
