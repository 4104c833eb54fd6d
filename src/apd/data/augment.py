"""Random resized crop and flip of a whole batch at once, one seed per sample."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from apd.errors import InputError

ATTEMPTS = 10
"""Boxes tried before the whole image is taken, as in torchvision."""


def random_resized_crop_flip(
    images: Tensor,
    seeds: Tensor,
    *,
    size: int,
    scale: tuple[float, float] = (0.6, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    mirror: bool = True,
) -> Tensor:
    """Crop a random box of each image, resize it to a square, and flip half of them left to right.

    Boxes are distributed as in Inception's crop (arXiv 1409.4842) and torchvision, but not rounded to whole pixels.
    Pixels are sampled bicubically and clamped to [0,1]; without smoothing, so ``size`` should not be much below S.

    Args:
        images: (B,3,S,S), floats in [0,1].
        seeds: int64 (B,), one per sample: the same image and seed give the same crop in any batch and on any device.
        size: side of the result, in pixels.
        scale: least and largest area of the box, as a share of the image's.
        ratio: least and largest width / height of the box.
        mirror: whether to flip.

    Returns:
        (B,3,size,size), floats in [0,1].

    Raises:
        InputError: for images that are not square, and for a ``scale`` or ``ratio`` out of range.

    >>> batch = torch.rand(2, 3, 32, 32)
    >>> random_resized_crop_flip(batch, torch.tensor([1, 2]), size=32).shape
    torch.Size([2, 3, 32, 32])
    """
    if images.dim() != 4 or images.shape[2] != images.shape[3]:
        raise InputError(f"images must be square, (B,3,S,S), got {tuple(images.shape)}.")
    left, top, width, height, flip = random_boxes(seeds, scale, ratio).to(images).unbind(1)
    zero = torch.zeros_like(left)
    sign = 1 - 2 * flip if mirror else torch.ones_like(flip)
    # In the grid's coordinates the image spans [-1, 1], twice its side.
    across = torch.stack([width * sign, zero, 2 * left + width - 1], dim=1)
    down = torch.stack([zero, height, 2 * top + height - 1], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0.0, 1.0)


def random_boxes(seeds: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """(B,5) on the CPU: left, top, width and height of a box in shares of the side, and 1 where the sample is flipped.

    Of ten boxes with uniform area and log-uniform ratio the first that fits is taken, or else the whole image.

    Raises:
        InputError: unless 0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1].
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise InputError(f"scale must be two shares of the area in (0, 1], the smaller first, got {scale}.")
    if not 0 < ratio[0] <= ratio[1]:
        raise InputError(f"ratio must be two positive numbers, the smaller first, got {ratio}.")
    rows = [torch.rand(2 * ATTEMPTS + 3, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds.tolist()]
    draws = torch.stack(rows)
    area = scale[0] + (scale[1] - scale[0]) * draws[:, :ATTEMPTS]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * draws[:, ATTEMPTS : 2 * ATTEMPTS])
    widths, heights = (area * aspect).sqrt(), (area / aspect).sqrt()
    fits = (widths <= 1) & (heights <= 1)
    first = fits.int().argmax(dim=1, keepdim=True)
    whole = ~fits.any(dim=1)
    width = widths.gather(1, first).squeeze(1).masked_fill(whole, 1.0)
    height = heights.gather(1, first).squeeze(1).masked_fill(whole, 1.0)
    along, down, coin = draws[:, 2 * ATTEMPTS :].unbind(1)
    return torch.stack([along * (1 - width), down * (1 - height), width, height, (coin < 0.5).to(width)], dim=1)
