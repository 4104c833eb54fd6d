"""Common corruptions (Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261), without OpenCV, scikit-image and ImageMagick.

Parameters are the published ones: those of ImageNet-C for images of 224 pixels, those of CIFAR-10-C for 32. Images up to
64 pixels take the latter, larger ones the former; radii and deviations of blur, which are in pixels, grow with the side.

What differs from the published code: pixels are rounded, not cut, to bytes; the defocus kernel is not clipped at its rim
(from radius 8); noise comes one seed per sample. Glass and zoom blur, snow, frost and elastic are left out.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from apd.errors import InputError, nearest

Pixels = NDArray[np.float64]
"""(S,S,3), in [0,1]."""
Parameters = tuple[float, ...]
Distortion = Callable[[Pixels, Parameters, np.random.Generator], Pixels]

SEVERITIES = range(1, 6)


def gaussian_noise(x: Pixels, parameters: Parameters, rng: np.random.Generator) -> Pixels:
    """Normal noise of a deviation."""
    return x + parameters[0] * rng.standard_normal(x.shape)


def shot_noise(x: Pixels, parameters: Parameters, rng: np.random.Generator) -> Pixels:
    """Poisson noise of the given number of photons at full brightness."""
    counts: NDArray[np.int64] = rng.poisson(x * parameters[0])
    return counts / parameters[0]


def impulse_noise(x: Pixels, parameters: Parameters, rng: np.random.Generator) -> Pixels:
    """A share of the values, channel by channel, is set to 0 or 1, as likely."""
    hit, white = rng.random(x.shape) < parameters[0], rng.random(x.shape) < 0.5
    return np.where(hit, white, x)


def defocus_blur(x: Pixels, parameters: Parameters, rng: np.random.Generator) -> Pixels:
    """Blur by a disk, mirrored at the borders."""
    kernel = disk(*parameters)
    reach = len(kernel) // 2
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    shape = padded.shape[:2]
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * np.fft.rfft2(kernel, shape)[..., None]
    blurred: Pixels = np.fft.irfft2(spectrum, shape, axes=(0, 1))[2 * reach :, 2 * reach :]
    return blurred


def disk(radius: float, alias: float) -> Pixels:
    """A disk (n,n) of sum 1, its rim smoothed by a Gaussian of deviation ``alias``; both in pixels."""
    taps = 1 if radius <= 8 else 2
    reach = math.ceil(radius) + taps
    place = np.arange(-reach, reach + 1)
    sharp = (place[:, None] ** 2 + place**2 <= radius**2).astype(np.float64)
    line = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * alias**2))
    for axis in (0, 1):
        sharp = np.apply_along_axis(np.convolve, axis, sharp, line, mode="same")
    kernel: Pixels = sharp / sharp.sum()
    return kernel


def motion_blur(x: Pixels, parameters: Parameters, rng: np.random.Generator) -> Pixels:
    """A smear in one direction within 45 degrees of the horizontal, half a Gaussian long, as ImageMagick makes it."""
    radius, sigma = parameters
    angle = math.radians(rng.uniform(-45, 45))
    side, width = len(x), 2 * math.ceil(radius) + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    padded = np.pad(x, ((width, width), (width, width), (0, 0)), mode="edge")
    blurred = np.zeros_like(x)
    for step, weight in enumerate(weights):
        down = width + math.ceil(step * math.sin(angle) - 0.5)
        right = width + math.ceil(step * math.cos(angle) - 0.5)
        blurred += weight * padded[down : down + side, right : right + side]
    return blurred


def fog(x: Pixels, parameters: Parameters, rng: np.random.Generator) -> Pixels:
    """A plasma fractal on top, the whole scaled back to the image's brightest value."""
    thickness, decay = parameters
    side, brightest = len(x), float(x.max())
    cloud = plasma(1 << (side - 1).bit_length(), decay, rng)[:side, :side, None]
    return (x + thickness * cloud) * brightest / (brightest + thickness)


def plasma(side: int, decay: float, rng: np.random.Generator) -> Pixels:
    """Heights (side,side) in [0,1] by the diamond-square algorithm on a torus; ``side`` is a power of two."""
    heights = np.zeros((side, side))
    step, wibble = side, 100.0

    def mean(total: Pixels) -> Pixels:
        return total / 4 + wibble * rng.uniform(-wibble, wibble, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        across = corners + np.roll(corners, -1, axis=0)
        centres = mean(across + np.roll(across, -1, axis=1))
        heights[half::step, half::step] = centres
        heights[::step, half::step] = mean(centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1))
        heights[half::step, ::step] = mean(centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0))
        step, wibble = half, wibble / decay
    heights -= heights.min()
    highest: float = heights.max()
    return heights / highest


def brightness(x: Pixels, parameters: Parameters, rng: np.random.Generator) -> Pixels:
    """The value of hue, saturation and value is raised."""
    value = x.max(axis=2, keepdims=True)
    raised = np.minimum(value + parameters[0], 1)
    brighter: Pixels = np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised)
    return brighter


def contrast(x: Pixels, parameters: Parameters, rng: np.random.Generator) -> Pixels:
    """Values drawn towards their channel's mean."""
    means: Pixels = x.mean(axis=(0, 1), keepdims=True)
    return (x - means) * parameters[0] + means


def pixelate(x: Pixels, parameters: Parameters, rng: np.random.Generator) -> Pixels:
    """Scaled down to a share of the side and up again, averaging over boxes."""
    side = len(x)
    small = max(1, int(side * parameters[0]))
    image = _image(x).resize((small, small), Image.Resampling.BOX).resize((side, side), Image.Resampling.BOX)
    return np.asarray(image) / 255


def jpeg_compression(x: Pixels, parameters: Parameters, rng: np.random.Generator) -> Pixels:
    """JPEG of a quality in percent."""
    buffer = io.BytesIO()
    _image(x).save(buffer, "JPEG", quality=int(parameters[0]))
    return np.asarray(Image.open(buffer)) / 255


def _image(x: Pixels) -> Image.Image:
    return Image.fromarray(np.rint(x * 255).astype(np.uint8))


@dataclass(frozen=True)
class Kind:
    """A corruption and its published parameters, one tuple per severity.

    Args:
        apply: the distortion.
        small: of CIFAR-10-C, for 32 pixels.
        large: of ImageNet-C, for 224 pixels.
        in_pixels: whether the parameters are lengths.
    """

    apply: Distortion
    small: tuple[Parameters, ...]
    large: tuple[Parameters, ...]
    in_pixels: bool = False

    def parameters(self, severity: int, side: int) -> Parameters:
        """Those for images of ``side`` pixels."""
        table, published = (self.small, 32) if side <= 64 else (self.large, 224)
        scale = side / published if self.in_pixels else 1.0
        return tuple(value * scale for value in table[severity - 1])


def _each(*values: float) -> tuple[Parameters, ...]:
    return tuple((value,) for value in values)


KINDS: dict[str, Kind] = {
    "gaussian_noise": Kind(gaussian_noise, _each(0.04, 0.06, 0.08, 0.09, 0.10), _each(0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": Kind(shot_noise, _each(500, 250, 100, 75, 50), _each(60, 25, 12, 5, 3)),
    "impulse_noise": Kind(impulse_noise, _each(0.01, 0.02, 0.03, 0.05, 0.07), _each(0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": Kind(
        defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        in_pixels=True,
    ),
    "motion_blur": Kind(
        motion_blur,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        in_pixels=True,
    ),
    "fog": Kind(
        fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": Kind(brightness, _each(0.05, 0.1, 0.15, 0.2, 0.3), _each(0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Kind(contrast, _each(0.75, 0.5, 0.4, 0.3, 0.15), _each(0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": Kind(pixelate, _each(0.95, 0.9, 0.85, 0.75, 0.65), _each(0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": Kind(jpeg_compression, _each(80, 65, 58, 50, 40), _each(25, 18, 15, 10, 7)),
}
"""By their published names."""


def parse_corruption(text: str) -> tuple[str, int]:
    """Kind and severity of ``fog:3``.

    Raises:
        InputError: for an unknown kind and for a severity other than 1 to 5.
    """
    kind, _, severity = text.partition(":")
    if kind not in KINDS:
        raise InputError(f"unknown corruption {kind!r}. {nearest(kind, KINDS)}")
    if severity not in map(str, SEVERITIES):
        raise InputError(f"corruption {text!r} needs a severity from 1 to 5, as in {kind}:3.")
    return kind, int(severity)


def corrupt(images: Tensor, kind: str, severity: int, seeds: Tensor) -> Tensor:
    """Corrupt images at the encoder's size, before any attack.

    Args:
        images: uint8 (N,3,S,S).
        kind: of `KINDS`.
        severity: from 1 to 5.
        seeds: int64 (N,) from 0, one per sample: the same image and seed give the same result in any batch.

    Returns:
        uint8 (N,3,S,S), on the device of ``images``.

    Raises:
        InputError: for an unknown kind or severity.

    >>> images = torch.full((2, 3, 32, 32), 100, dtype=torch.uint8)
    >>> corrupt(images, "brightness", 1, torch.tensor([0, 1]))[0, 0, 0, 0].item()
    113
    """
    parse_corruption(f"{kind}:{severity}")
    chosen = KINDS[kind]
    parameters = chosen.parameters(severity, images.shape[-1])
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    corrupted = np.empty_like(pixels)

    def fill(index: int) -> None:
        result = chosen.apply(pixels[index] / 255.0, parameters, np.random.default_rng(int(seeds[index])))
        corrupted[index] = np.rint(result.clip(0, 1) * 255)

    with ThreadPoolExecutor() as pool:
        list(pool.map(fill, range(len(pixels))))
    return torch.from_numpy(corrupted).permute(0, 3, 1, 2).contiguous().to(images.device)
