"""CutMix (Yun et al., ICCV 2019): images made of two, one with a box of another pasted in.

Here they are further training images, made once and treated as images without a label: a teacher says what they show, as
"A good teacher is patient and consistent" (Beyer et al., CVPR 2022) does for clean networks. The original mixes the labels by
area instead, and pastes a box that may reach over the edge; ours lies inside.
"""

from __future__ import annotations

import torch

from apd.data.dataset import UNKNOWN, Decoded
from apd.errors import InputError
from apd.util.seeds import sample_seeds


def cutmix(images: Decoded, count: int, seed: int = 0) -> Decoded:
    """Make ``count`` images, each one of ``images`` with a square box of another pasted in; they have no label.

    The pair, the share of the area that the box has (uniform from 0 to 1) and its place are drawn by ``seed``, for each image
    on its own: a smaller count gives the first of them.

    Raises:
        InputError: for fewer than two images.

    >>> both = Decoded(torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]).byte(), torch.tensor([0, 1]), ("a", "b"))
    >>> cutmix(both, 3).images.shape
    torch.Size([3, 3, 8, 8])
    """
    if len(images) < 2:
        raise InputError(
            f"train.cutmix={count} makes images of two labelled ones, but there "
            f"{'is 1' if len(images) else 'are none'}; add some, or set it to 0."
        )
    size, ids = images.images.shape[-1], tuple(f"cutmix/{number:05d}" for number in range(count))
    mixed = []
    for draw in sample_seeds(ids, seed, "cutmix").tolist():
        generator = torch.Generator().manual_seed(draw)
        one, other = torch.randperm(len(images), generator=generator)[:2].tolist()
        area = torch.rand((), generator=generator).item()
        side = max(1, round(size * area**0.5))
        top, left = torch.randint(size - side + 1, (2,), generator=generator).tolist()
        box = (..., slice(top, top + side), slice(left, left + side))
        image = images.images[one].clone()
        image[box] = images.images[other][box]
        mixed.append(image)
    return Decoded(torch.stack(mixed), torch.full((count,), UNKNOWN, device=images.labels.device), ids)
