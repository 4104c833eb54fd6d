"""Out of memory: half as many images at a time, then half of that, down to one."""

from __future__ import annotations

import gc
from collections.abc import Iterator

from apd.util.messages import get_logger

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

    def attempts(self, images: int) -> Iterator[Attempt]:
        """Yield attempts at some work until one succeeds, each with at most `most` images at a time; what fits is kept to.

        The work is the body of ``with attempt:``, not a function that is called from here: stacks stay short. It begins
        again from its start, with half as many images at a time, where the memory is full.

        Args:
            images: the most that the work takes at a time.
        """
        while True:
            attempt = Attempt(self, images)
            yield attempt
            if attempt.succeeded:
                return
            # Here the error is forgotten, and with it the tensors that its traceback holds.
            _free()
            log.warning(
                f"Out of memory: the image tower gets {self.most} of {images} images at a time from now on. Batches, and what is "
                "learned and measured, stay the same but for rounding."
            )


class Attempt:
    """One attempt: swallows an error that says that the memory is full, unless that is so with a single image."""

    def __init__(self, room: Room, images: int) -> None:
        self.room, self.images, self.succeeded = room, images, False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        self.succeeded = error is None
        size = min(self.images, self.room.most or self.images)
        if not isinstance(error, Exception) or not is_out_of_memory(error) or size <= 1:
            return False
        self.room.most = size // 2
        return True


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
