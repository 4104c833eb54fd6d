"""Out of memory: half as many images at a time, then half of that, down to one."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

from apd.util.messages import get_logger

T = TypeVar("T")
log = get_logger("apd.memory")

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch says in a plain RuntimeError where the memory is full."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that the memory of a device or of the machine is full."""
    import torch

    if error is None:
        return False
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    told = isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    return told or is_out_of_memory(error.__cause__)


class Room:
    """How many images fit at a time; found out by failing.

    Args:
        most: images at a time; None: as many as there are.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most

    def fit(self, images: int, work: Callable[[int | None], T]) -> T:
        """Do some work with as many images at a time as fit; what fits once is kept to.

        Args:
            images: the most that the work takes at a time.
            work: called with `most`; again from its start, with half as many, where the memory is full.

        Raises:
            Exception: what ``work`` raises, out of memory with a single image included.
        """
        while True:
            try:
                return work(self.most)
            except Exception as error:
                size = min(images, self.most or images)
                if not is_out_of_memory(error) or size <= 1:
                    raise
                self.most = size // 2
            # Here the error is forgotten, and with it the tensors that its traceback holds.
            _free()
            log.warning(
                f"Out of memory: the image tower gets {self.most} of {images} images at a time from now on. Batches, and what is "
                "learned and measured, stay the same but for rounding."
            )


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
