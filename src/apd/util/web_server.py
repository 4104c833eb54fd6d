"""Run uvicorn, and stop it without a traceback; needs uvicorn."""

from __future__ import annotations

import logging
import socket
from types import FrameType

import uvicorn

from apd.errors import InputError
from apd.util.text import short

_LOG = logging.getLogger("uvicorn.error")


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # After a second Ctrl-C what is in flight is given up, which uvicorn tells by a traceback for each.
        if self.force_exit:
            _LOG.disabled = True


def listen(host: str, port: int) -> socket.socket:
    """Open a server's socket, before anything else is loaded, so that a place which is taken is told at once.

    Args:
        host: a name or address of this machine.
        port: 0 for any that is free.

    Raises:
        InputError: the place is taken, not this machine's, or not a name; no such port.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"There is no port {port}; choose one from 1 to 65535 with --port, or 0 for a free one.")
    found: socket.socket | None = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        # Now, and not when uvicorn gets to it: whoever connects meanwhile is kept waiting and not turned away.
        found.listen(128)
    except (OSError, UnicodeError) as error:
        if found is not None:
            found.close()
        why = getattr(error, "strerror", None) or "not the name of a host"
        raise InputError(
            f"Cannot listen on {short(host)}, port {port} ({why}); choose another with --port (0: a free one) or --host."
        ) from error
    return found


def run_server(config: uvicorn.Config, at: socket.socket) -> None:
    """Answer on a socket until a signal; what is in flight then is answered, unless Ctrl-C comes again.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
    """
    before = _LOG.disabled
    try:
        _Server(config).run(sockets=[at])
    finally:
        _LOG.disabled = before
