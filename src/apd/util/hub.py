"""The Hugging Face hub where it is not reached: its libraries ask half a minute for each file, also for those in the cache."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from apd.util.messages import get_logger

log = get_logger("apd.hub")
_REPOSITORY = re.compile(r"(\b[\w.-]+\b/)?\b[\w.-]{1,96}\b", re.ASCII)
_UNREACHED = ContextVar("unreached", default=False)


def can_be_on_hub(name: str) -> bool:
    """Whether a name can be that of a repository on the hub, ``owner/name`` or, of old ones, ``name``."""
    return bool(_REPOSITORY.fullmatch(name)) and "--" not in name and ".." not in name and not name.endswith(".git")


def means_hub(name: str, revision: str | None = None) -> bool:
    """Whether ``owner/name`` stands for a repository on the hub rather than for a path at which there is nothing.

    Where there is a folder ``owner``, it is a path, unless a revision is asked for or the hub's cache has the repository.
    """
    from huggingface_hub import try_to_load_from_cache

    if name.count("/") != 1 or not can_be_on_hub(name):
        return False
    if revision or not Path(name).parent.is_dir():
        return True
    return isinstance(try_to_load_from_cache(name, "config.json"), str)


@contextmanager
def hub_or_cache(at: str) -> Iterator[None]:
    """Read ``at``, a folder or a hub id, from the hub's cache alone if the hub is not reached, as if HF_HUB_OFFLINE were set."""
    from huggingface_hub import constants

    if Path(at).is_dir() or constants.HF_HUB_OFFLINE or _is_reached():
        yield
        return
    log.info("The Hugging Face hub is not reached: what is in its cache on this machine is taken.")
    unreached, constants.HF_HUB_OFFLINE = _UNREACHED.set(True), True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False
        _UNREACHED.reset(unreached)


def is_switched_off() -> bool:
    """Whether HF_HUB_OFFLINE is set by whoever started this program."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) and not _UNREACHED.get()


def _is_reached() -> bool:
    """Whether the hub answers; what it answers does not matter."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:  # its versions have different libraries for HTTP, each with errors of its own
        return False
    return True
