"""Images that do not fit in memory: decoded when they are asked for, by threads that read ahead."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apd.data.dataset import Decoded, Images, ImageSet
from apd.data.decode import find_bad, read_image
from apd.data.unreadable import WAY_OUT, complaint, how_to_convert
from apd.errors import InputError
from apd.models.preprocessing import Preprocessing
from apd.util.messages import get_logger

log = get_logger("apd.data")

GB = 1024**3


class Streamed:
    """Images decoded anew each time they are asked for; to the byte what `Decoded` would have kept.

    Args:
        source: the images, all of which can be read.
        preprocessing: the encoder's.
        skipped: ids of the images that could not be read, which are not among them.
        device: where pixels are wanted.
    """

    def __init__(
        self,
        source: ImageSet,
        preprocessing: Preprocessing,
        skipped: tuple[str, ...] = (),
        device: torch.device | None = None,
    ) -> None:
        self.source, self.preprocessing, self.skipped = source, preprocessing, skipped
        self.ids, self.labels = source.ids, source.labels.to(device or torch.device("cpu"))
        self._threads = ThreadPoolExecutor(thread_name_prefix="decode")
        self._ahead: dict[int, Future[NDArray[np.uint8]]] = {}
        # Pillow's warnings name no file. Filters belong to the process, so no thread can set its own.
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def to(self, device: torch.device) -> Streamed:
        """Return the images for another device; their files stay where they are."""
        return Streamed(self.source, self.preprocessing, self.skipped, device)

    def expect(self, index: Sequence[int]) -> None:
        """Start to decode the images at ``index``, which will be asked for soon; they are kept until then."""
        for i in index:
            if i not in self._ahead:
                self._ahead[i] = self._threads.submit(read_image, self.source.sources[i], self.preprocessing)

    def pixels(self, index: Tensor) -> Tensor:
        """The images at ``index`` (B,) as float32 (B,3,S,S) in [0,1].

        Raises:
            InputError: for an image that can no longer be read.
        """
        wanted = index.tolist()
        self.expect(wanted)
        squares = [self._decoded(i) for i in wanted]
        for i in wanted:
            self._ahead.pop(i, None)
        size = self.preprocessing.size
        kept = np.stack(squares) if squares else np.empty((0, 3, size, size), np.uint8)
        return torch.from_numpy(kept).to(self.labels.device).float() / 255

    def _decoded(self, i: int) -> NDArray[np.uint8]:
        try:
            return self._ahead[i].result()
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly everything for a broken file
            raise InputError(
                f"{complaint(self.ids[i], self.source.sources[i], error)} It could be read when training began: restore it, "
                "then resume."
            ) from error


def keep_or_stream(
    images: ImageSet, preprocessing: Preprocessing, memory_gb: float, *, skip_bad: bool = False, progress: bool = False
) -> Decoded | Streamed:
    """Decode the images once and keep them, if they fit in ``memory_gb`` (2^30 bytes each); else check and stream them.

    Args:
        images: may be none.
        preprocessing: the encoder's.
        memory_gb: room for their bytes.
        skip_bad: leave out the images that cannot be read.
        progress: show on standard error how far it is when it takes long.

    Raises:
        InputError: for an image that cannot be read (or, with ``skip_bad``, if none can), naming it.
    """
    need = len(images) * 3 * preprocessing.size**2 / GB
    if need <= memory_gb:
        return images.decode(preprocessing, skip_bad=skip_bad, progress=progress)
    log.info(
        f"{len(images)} unlabelled images would take {need:.1f} GB, more than data.memory_gb={memory_gb:g}: they are checked "
        "once, then decoded again whenever training asks for them."
    )
    bad, _ = find_bad(images.ids, images.sources, math.inf, progress, preprocessing)
    if bad and (not skip_bad or len(bad) == len(images)):
        way_out = "" if skip_bad else f" {WAY_OUT}{how_to_convert(images.ids[i] for i in bad)}"
        raise InputError(
            f"{len(bad)} of {len(images)} images cannot be read; of the first: {next(iter(bad.values()))}{way_out}"
        )
    kept = images.select([i for i in range(len(images)) if i not in bad]) if bad else images
    return Streamed(kept, preprocessing, tuple(images.ids[i] for i in bad))


def in_parts(images: Images, size: int) -> Iterator[Tensor]:
    """Yield the indices of all images, ``size`` at a time, and let each next part be decoded meanwhile."""
    parts = torch.split(torch.arange(len(images), device=images.labels.device), size)
    for index, following in zip_longest(parts, parts[1:]):
        images.expect(index.tolist())
        if following is not None:
            images.expect(following.tolist())
        yield index
