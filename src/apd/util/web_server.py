"""uvicorn with an end that shows no traceback; needs uvicorn."""

from __future__ import annotations

import logging
import socket
from types import FrameType

import uvicorn

_LOG = logging.getLogger("uvicorn.error")


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # After a second Ctrl-C what is in flight is given up, which uvicorn tells by a traceback for each.
        if self.force_exit:
            _LOG.disabled = True


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
