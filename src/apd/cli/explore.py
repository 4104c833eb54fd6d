"""`apd explore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apd.cli.common import Device, MovedModel, log, quiet_stdout, say


def explore(
    run: Annotated[Path, typer.Argument(help="Run folder of apd train.")],
    port: Annotated[int, typer.Option(help="Port; 0: a free one.")] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in, without a password.")
    ] = "127.0.0.1",
    model: MovedModel = None,
    device: Device = "auto",
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Try a run in the browser: your image, your class names, an attack of any strength, zero-shot CLIP beside it.

    Examples:
      apd explore runs/digits
      apd explore runs/photos --port 0 --open
    """
    from apd.runs.folder import Run

    Run.open(run)  # before torch is imported, so that a wrong folder is told at once
    from apd.explore.server import explore as serve

    def ready(address: str) -> None:
        say(f"Open {address} in a browser; Ctrl-C stops it.")
        if host not in ("127.0.0.1", "localhost", "::1"):
            log.warning(f"Anyone who reaches {host} can use this page.")
        if open_:
            typer.launch(address)

    with quiet_stdout():
        serve(run, host=host, port=port, model=model, device=device, on_ready=ready)
