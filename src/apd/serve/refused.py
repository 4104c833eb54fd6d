"""What is wrong with a request, for whoever sent it."""

from __future__ import annotations

BUSY = "The server is busy; send the request again in a second."
STOPPED = "The model's thread has stopped; restart the server."


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        detail: a sentence with the way out.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
