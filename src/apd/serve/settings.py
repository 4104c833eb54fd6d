"""What a server accepts, how it batches, and when it abstains."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

from apd.errors import InputError
from apd.util.integers import check_whole

_MEGA = 2**20
_MEGAPIXELS = 178
"""Pillow refuses images of more."""
_HEADERS = 2048
"""Bytes around each image in a multipart body, at most."""


@dataclass(frozen=True)
class ServeSettings:
    """Limits, batching and abstention of a server.

    Args:
        max_image_mb: size of an image file, in MiB.
        max_images: images in a request.
        max_megapixels: width times height of an image, in millions; guards against decompression bombs.
        timeout: seconds for a request's body to come in, and again for its answer.
        max_batch: images that the model takes at a time.
        max_wait_ms: milliseconds that the first image of a batch waits for others.
        abstain_below: probability under which an answer has no class; None: every answer has one.
        max_requests: requests at a time; further ones are told to come back.

    Raises:
        InputError: a value out of range, or not a number, or not a whole one where things are counted.
    """

    max_image_mb: float = 10.0
    max_images: int = 128
    max_megapixels: float = 50.0
    timeout: float = 30.0
    max_batch: int = 32
    max_wait_ms: float = 5.0
    abstain_below: float | None = None
    max_requests: int = 64

    def __post_init__(self) -> None:
        for name in ("max_images", "max_batch", "max_requests"):
            check_whole(getattr(self, name), name)
        for name in ("max_image_mb", "max_megapixels", "timeout", "max_wait_ms", "abstain_below"):
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number and (name, value) != ("abstain_below", None):
                raise InputError(f"{name} must be a number, got {value!r}.")
        for name in ("max_image_mb", "max_megapixels", "timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be a finite number above 0, got {getattr(self, name)}.")
        if self.max_megapixels > _MEGAPIXELS:
            raise InputError(f"max_megapixels must be at most {_MEGAPIXELS}, got {self.max_megapixels:g}.")
        if not 0 <= self.max_wait_ms <= 1000 * self.timeout:
            raise InputError(f"max_wait_ms must be between 0 and the timeout, got {self.max_wait_ms}.")
        if self.abstain_below is not None and not 0 <= self.abstain_below <= 1:
            raise InputError(f"abstain_below must be a probability from 0 to 1, got {self.abstain_below}.")

    @property
    def image_bytes(self) -> int:
        """Most bytes of an image file."""
        return int(self.max_image_mb * _MEGA)

    @property
    def body_bytes(self) -> int:
        """Most bytes of a request's body."""
        return self.max_images * (self.image_bytes + _HEADERS)

    @property
    def pixels(self) -> int:
        """Most pixels of an image."""
        return int(self.max_megapixels * 1e6)

    @property
    def queued(self) -> int:
        """Most images that wait for the model."""
        return 4 * max(self.max_images, self.max_batch)
