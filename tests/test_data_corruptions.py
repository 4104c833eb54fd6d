"""Common corruptions against slow, obvious references and independent libraries."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from apd.data.corruptions import KINDS, Pixels, corrupt, disk, parse_corruption, plasma
from apd.errors import InputError

from .refusals import refused


def natural(n: int, side: int) -> Tensor:
    """Images uint8 (n,3,side,side) whose spectrum falls like that of photos."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = 1 / side
    waves = np.fft.ifft2(np.fft.fft2(rng.standard_normal((n, 3, side, side))) / frequency).real
    waves = (waves - waves.mean((2, 3), keepdims=True)) / waves.std((2, 3), keepdims=True)
    return torch.from_numpy((128 + 50 * waves).clip(0, 255).round().astype(np.uint8))


def grey(n: int, side: int, value: int) -> Tensor:
    return torch.full((n, 3, side, side), value, dtype=torch.uint8)


def close(found: Tensor, expected: Pixels) -> None:
    """Equal after rounding to bytes, up to one step where a value lies between two."""
    pixels = found[0].permute(1, 2, 0).double().numpy()
    assert np.abs(pixels - 255 * expected.clip(0, 1)).max() < 0.5 + 1e-6


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("kind", KINDS)
def test_each_severity_is_further_from_the_image(kind: str, side: int) -> None:
    images = natural(4, side)
    seeds = torch.arange(4)
    moved = [float((corrupt(images, kind, s, seeds).float() - images).abs().mean()) for s in range(1, 6)]
    steps = np.diff([0, *moved])
    # CIFAR-10-C's motion blur has one deviation for severities 3 and 4.
    assert (steps > (-1e-6 if kind == "motion_blur" and side == 32 else 0)).all(), moved
    assert moved[0] > 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_a_matter_of_image_and_seed_alone(kind: str) -> None:
    images, seeds = natural(5, 32), torch.tensor([3, 1, 4, 1, 2**61])
    together = corrupt(images, kind, 3, seeds)
    assert together.dtype == torch.uint8 and together.shape == images.shape and together.is_contiguous()
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(corrupt(images[order], kind, 3, seeds[order]), together[order])
    assert torch.equal(corrupt(images[2:3], kind, 3, seeds[2:3]), together[2:3])
    other = corrupt(images, kind, 3, seeds + 1)
    random = kind in ("gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog")
    assert torch.equal(other, together) is not random


@pytest.mark.parametrize(("side", "deviations"), [(32, (0.04, 0.10)), (224, (0.08, 0.38))])
def test_gaussian_noise_has_its_deviation(side: int, deviations: tuple[float, float]) -> None:
    images = grey(4, side, 128)
    for severity, deviation in zip((1, 5), deviations, strict=True):
        noise = (corrupt(images, "gaussian_noise", severity, torch.arange(4)).float() - 128) / 255
        inside = 2 * deviation < 0.5  # beyond, clipping narrows it
        assert float(noise.std()) == pytest.approx(deviation, rel=0.05) if inside else float(noise.std()) < deviation
        assert abs(float(noise.mean())) < 0.02


def test_shot_noise_grows_with_brightness() -> None:
    seeds = torch.arange(8)
    for value in (51, 102):
        noise = (corrupt(grey(8, 32, value), "shot_noise", 3, seeds).float() - value) / 255
        assert float(noise.var()) == pytest.approx(value / 255 / 100, rel=0.1)


def test_impulse_noise_hits_its_share_of_values() -> None:
    noisy = corrupt(grey(16, 32, 100), "impulse_noise", 5, torch.arange(16))
    assert set(noisy.unique().tolist()) == {0, 100, 255}
    assert float((noisy != 100).float().mean()) == pytest.approx(0.07, rel=0.1)
    assert float((noisy == 255).float().mean()) == pytest.approx(0.035, rel=0.1)
    assert bool(((noisy[:, 0] != 100) & (noisy[:, 1] == 100)).any()), "channel by channel"


def test_defocus_kernels() -> None:
    for side in (8, 32, 64, 96, 224, 336):
        for severity in range(1, 6):
            kernel = disk(*KINDS["defocus_blur"].parameters(severity, side))
            assert kernel.sum() == pytest.approx(1) and (kernel >= 0).all()
            assert np.allclose(kernel, kernel.T) and np.allclose(kernel, kernel[::-1])
    area = sum(x * x + y * y <= 9 for x in range(-3, 4) for y in range(-3, 4))
    sharp = disk(3, 0.1)  # a deviation of a tenth of a pixel blurs nothing
    assert sharp.max() == pytest.approx(1 / area) and (sharp > 1e-12).sum() == area
    soft = disk(0.3, 0.4)
    side = math.exp(-1 / (2 * 0.4**2))
    expected = np.outer([side, 1, side], [side, 1, side])
    assert np.allclose(soft[1:-1, 1:-1], expected / expected.sum())


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_defocus_blur_is_a_convolution_mirrored_at_the_borders(severity: int) -> None:
    from scipy.ndimage import convolve

    images = natural(1, 32)
    kernel = disk(*KINDS["defocus_blur"].parameters(severity, 32))
    planes = [convolve(images[0, c].double().numpy() / 255, kernel, mode="mirror") for c in range(3)]
    close(corrupt(images, "defocus_blur", severity, torch.tensor([0])), np.stack(planes, axis=2))


def test_motion_blur_is_a_smear_along_a_line() -> None:
    images, seed = natural(1, 32), 11
    x = images[0].permute(1, 2, 0).double().numpy() / 255
    radius, sigma = 9, 2.5
    angle = np.random.default_rng(seed).uniform(-45, 45) * math.pi / 180
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)]
    expected = np.zeros_like(x)
    for row in range(32):
        for column in range(32):
            for i, weight in enumerate(weights):
                down, right = math.ceil(i * math.sin(angle) - 0.5), math.ceil(i * math.cos(angle) - 0.5)
                there = min(max(row + down, 0), 31), min(max(column + right, 0), 31)
                expected[row, column] += weight / sum(weights) * x[there]
    close(corrupt(images, "motion_blur", 5, torch.tensor([seed])), expected)
    assert torch.equal(corrupt(grey(2, 32, 77), "motion_blur", 5, torch.arange(2)), grey(2, 32, 77))


def slow_plasma(side: int, decay: float, rng: np.random.Generator) -> Pixels:
    """Diamond-square point by point, on a torus."""
    heights = np.zeros((side, side))
    step, wibble = side, 100.0
    while step >= 2:
        half = step // 2
        grid = range(0, side, step)
        for rows, columns, offsets in (
            ([r + half for r in grid], [c + half for c in grid], [(-1, -1), (-1, 1), (1, -1), (1, 1)]),
            (list(grid), [c + half for c in grid], [(-1, 0), (1, 0), (0, -1), (0, 1)]),
            ([r + half for r in grid], list(grid), [(-1, 0), (1, 0), (0, -1), (0, 1)]),
        ):
            draws = wibble * rng.uniform(-wibble, wibble, (len(rows), len(columns)))
            for i, row in enumerate(rows):
                for j, column in enumerate(columns):
                    around = [heights[(row + a * half) % side, (column + b * half) % side] for a, b in offsets]
                    heights[row, column] = sum(around) / 4 + draws[i, j]
        step, wibble = half, wibble / decay
    heights -= heights.min()
    return heights / heights.max()


def test_fog_is_a_plasma_fractal() -> None:
    for side, decay in ((8, 2.0), (32, 1.75)):
        cloud = plasma(side, decay, np.random.default_rng(4))
        assert np.allclose(cloud, slow_plasma(side, decay, np.random.default_rng(4)))
        assert cloud.min() == 0 and cloud.max() == 1
    images = natural(1, 28)  # no power of two
    x = images[0].permute(1, 2, 0).double().numpy() / 255
    cloud = slow_plasma(32, 2.0, np.random.default_rng(9))[:28, :28, None]
    close(corrupt(images, "fog", 4, torch.tensor([9])), (x + 1.0 * cloud) * x.max() / (x.max() + 1.0))


def each_pixel(images: Tensor, change: Callable[[tuple[float, float, float]], tuple[float, float, float]]) -> Pixels:
    x = images[0].permute(1, 2, 0).double().numpy() / 255
    return np.array([[change((float(p[0]), float(p[1]), float(p[2]))) for p in row] for row in x])


def test_brightness_raises_the_value_in_hsv() -> None:
    images = natural(1, 32)
    images[0, :, :4] = 0  # black has no hue

    def brighter(rgb: tuple[float, float, float]) -> tuple[float, float, float]:
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1))

    close(corrupt(images, "brightness", 4, torch.tensor([0])), each_pixel(images, brighter))


def test_contrast_draws_to_the_channel_s_mean() -> None:
    images = natural(1, 32)
    means = [float(images[0, c].double().mean()) / 255 for c in range(3)]

    def flatter(rgb: tuple[float, float, float]) -> tuple[float, float, float]:
        r, g, b = (mean + 0.3 * (value - mean) for value, mean in zip(rgb, means, strict=True))
        return r, g, b

    close(corrupt(images, "contrast", 4, torch.tensor([0])), each_pixel(images, flatter))


@pytest.mark.parametrize(("side", "quality", "share"), [(32, 40, 0.65), (224, 7, 0.25)])
def test_jpeg_and_pixelate_are_pillow_s(side: int, quality: int, share: float) -> None:
    images, seed = natural(1, side), torch.tensor([0])
    image = Image.fromarray(images[0].permute(1, 2, 0).contiguous().numpy())
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    small = image.resize((int(side * share),) * 2, Image.Resampling.BOX)
    for kind, expected in {
        "jpeg_compression": Image.open(buffer),
        "pixelate": small.resize((side, side), Image.Resampling.BOX),
    }.items():
        assert torch.equal(corrupt(images, kind, 5, seed)[0].permute(1, 2, 0), torch.from_numpy(np.array(expected)))


def test_lengths_grow_with_the_side_and_the_rest_does_not() -> None:
    blur, noise = KINDS["motion_blur"], KINDS["gaussian_noise"]
    assert blur.parameters(5, 32) == (9, 2.5) and blur.parameters(5, 64) == (18, 5)
    assert blur.parameters(5, 224) == (20, 15) and blur.parameters(5, 336) == (30, 22.5)
    assert noise.parameters(5, 32) == noise.parameters(5, 64) == (0.10,)
    assert noise.parameters(5, 224) == noise.parameters(5, 336) == (0.38,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fogg:3", "unknown corruption 'fogg'. Did you mean fog?"),
        ("fog", "needs a severity from 1 to 5, as in fog:3"),
        ("fog:6", "corruption 'fog:6' needs a severity from 1 to 5"),
        ("fog:0", "from 1 to 5"),
        ("fog:3.0", "from 1 to 5"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_corruption(text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_corrupt_checks_what_it_is_given() -> None:
    assert parse_corruption("jpeg_compression:5") == ("jpeg_compression", 5)
    with refused("fog:7", "1", "5"):
        corrupt(grey(1, 8, 0), "fog", 7, torch.tensor([0]))
    assert corrupt(grey(2, 8, 0), "fog", 1, torch.arange(2)).max() == 0, "a black image stays black, as published"
    assert len(corrupt(grey(0, 8, 0), "fog", 1, torch.arange(0))) == 0
