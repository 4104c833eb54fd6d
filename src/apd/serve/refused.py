"""What is wrong with a request, for whoever sent it."""

from __future__ import annotations

BUSY = "The server is busy; send the request again in a second."
STOPPED = "The model's thread has stopped; restart the server."


def too_slow(seconds: float) -> str:
    """Say that images took too long though no others were there: sent again they would take as long."""
    return (
        f"These images took longer than {seconds:g} seconds, though no others were there; send fewer in a request, or start the "
        "server with a longer --timeout."
    )


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        detail: a sentence with the way out.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Late(Refused):
    """A request whose images took longer than the timeout."""

    def __init__(self) -> None:
        super().__init__(503, BUSY)
