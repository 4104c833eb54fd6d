"""The process: a socket, uvicorn on it, and an end that waits for what is in flight."""

from __future__ import annotations

import math
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn

from apd.data.decode import quiet_pillow
from apd.errors import InputError
from apd.serve.settings import ServeSettings
from apd.util.web_server import run_server

if TYPE_CHECKING:
    from fastapi import FastAPI


def listen(host: str, port: int) -> socket.socket:
    """Open the server's socket.

    Args:
        host: a name or address of this machine.
        port: 0 for any that is free.

    Raises:
        InputError: the place is taken, or not this machine's.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        # Now, and not when uvicorn gets to it: whoever connects meanwhile is kept waiting and not turned away.
        found.listen(128)
    except OSError as error:
        raise InputError(
            f"Cannot listen on {host}, port {port} ({error.strerror}); choose another with --port or --host."
        ) from error
    return found


def serve(app: FastAPI, at: socket.socket, settings: ServeSettings) -> None:
    """Answer requests until SIGTERM or Ctrl-C, and then what is in flight; returns after SIGTERM.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
    """
    # uvicorn sends itself the signal again when it is done, which must not end the process with an error.
    signal.signal(signal.SIGTERM, lambda *_: None)
    end = math.ceil(2 * settings.timeout) + 1
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=end
    )
    with quiet_pillow():
        run_server(config, at)
