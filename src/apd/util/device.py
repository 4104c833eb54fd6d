"""Which device to compute on."""

from __future__ import annotations

import psutil
import torch

from apd.errors import InputError


def pick_device(name: str) -> str:
    """``auto`` as the best device there is; other names unchanged.

    Raises:
        InputError: a name that torch does not know, or a device that is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"No device {name!r} here: {str(error).splitlines()[0].rstrip('.')}. Use device auto."
        ) from error
    return name


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device, other programs' share left out."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
