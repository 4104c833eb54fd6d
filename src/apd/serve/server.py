"""The process: a socket, uvicorn on it, and an end that waits for what is in flight."""

from __future__ import annotations

import math
import os
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn

from apd.data.decode import quiet_pillow
from apd.serve.settings import ServeSettings
from apd.util.web_server import run_server

if TYPE_CHECKING:
    from fastapi import FastAPI


def serve(app: FastAPI, at: socket.socket, settings: ServeSettings) -> None:
    """Answer requests until SIGTERM or Ctrl-C, and then what is in flight; returns after SIGTERM.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
    """

    def ended(*_: object) -> None:
        """Before uvicorn listens to it nothing is in flight; when uvicorn is done it sends itself the signal again."""
        if not app.state.began:
            os._exit(0)

    signal.signal(signal.SIGTERM, ended)
    end = math.ceil(2 * settings.timeout) + 1
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=end
    )
    with quiet_pillow():
        run_server(config, at)
