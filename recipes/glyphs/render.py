"""Pictures of glyphs, a batch at a time: base masks deformed, cropped, blurred, coloured and made noisy in torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from recipes.glyphs.captions import COLOUR_NAMES, COLOURS, GLYPHS
from recipes.glyphs.masks import Pool

SIZE = 32
"""Side of a picture, in pixels."""
SCAN = 8
"""Side of the coarse grid that a scanned picture is averaged to before it is scaled up again."""
SOURCE_WEIGHTS = {"digit": (0.25, 0.15, 0.6), "letter": (0.6, 0.4, 0.0)}
"""How often a digit's or a letter's mask comes from each of masks.SOURCES."""
SLANT = 0.3
"""Shear (x per y) from which a caption may say "slanted"."""
LIGHT_ON_DARK, DARK_ON_LIGHT = 0.55, 0.15
"""Parts of the pictures that are white on black and black on white; the rest takes two different colours."""


@dataclass(frozen=True)
class Batch:
    """Pictures (B, 3, SIZE, SIZE) in [0, 1] and attributes (B, 5): identity, colour, background, slanted, blurred."""

    pixels: torch.Tensor
    attributes: torch.Tensor


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def mask_weights(pool: Pool) -> torch.Tensor:
    """Sampling weight of each base mask (N,): digits are half of the samples, identities alike within each half."""
    digits = torch.tensor([glyph.is_digit for glyph in GLYPHS])
    share = torch.where(digits, 0.5 / digits.sum(), 0.5 / (~digits).sum())
    parts = torch.tensor([SOURCE_WEIGHTS["digit" if glyph.is_digit else "letter"] for glyph in GLYPHS])
    sources = parts.shape[1]
    cell = pool.identities * sources + pool.sources
    members = torch.bincount(cell, minlength=len(GLYPHS) * sources).clamp(min=1)
    return ((share[:, None] * parts).flatten() / members)[cell]


def vary_stroke(masks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Leave, thicken (by 2 or 4 pixels) or thin (by 2) the strokes of each mask: (B, 1, H, W) -> the same shape."""
    thick = F.max_pool2d(masks, 3, 1, 1)
    variants = torch.stack([masks, masks, thick, F.max_pool2d(thick, 3, 1, 1), -F.max_pool2d(-masks, 3, 1, 1)])
    choice = torch.randint(len(variants), (len(masks),), generator=generator)
    chosen = variants[choice, torch.arange(len(masks))]
    # A thin stroke must survive its thinning.
    lost = chosen.flatten(1).sum(1) < 0.45 * masks.flatten(1).sum(1)
    return torch.where(lost[:, None, None, None], masks, chosen)


def deform(masks: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate, shear, stretch and bend each mask; also returns the shear (B,), positive when it leans to the right."""
    count, side = len(masks), masks.shape[-1]
    angle = 0.12 * torch.randn(count, generator=generator)
    shear = 0.22 * torch.randn(count, generator=generator)
    stretch = torch.exp(_uniform((count,), -0.25, 0.6, generator))
    cos, sin = angle.cos(), angle.sin()
    rows = torch.stack([torch.stack([cos * stretch, sin + shear], -1), torch.stack([-sin * stretch, cos], -1)], -2)
    theta = torch.cat([rows, torch.zeros(count, 2, 1)], -1)
    grid = F.affine_grid(theta, [count, 1, side, side], align_corners=False)
    amplitude = _uniform((count, 1, 1, 1), 0.0, 0.11, generator)
    bends = amplitude * torch.randn((count, 2, 4, 4), generator=generator)
    bends = F.interpolate(bends, size=side, mode="bilinear", align_corners=True)
    return F.grid_sample(masks, grid + bends.permute(0, 2, 3, 1), align_corners=False), shear


def _extent(masks: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre and half-length (B,) of the ink along x (dim 3) or y (dim 2), in units of half the canvas."""
    inked = (masks > 0.4).any(5 - dim).squeeze(1).float()
    side = inked.shape[-1]
    first = inked.argmax(-1).float()
    last = side - inked.flip(-1).argmax(-1).float()
    return (first + last) / side - 1, ((last - first) / side).clamp(min=2 / side)


def place(masks: torch.Tensor, tight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Scale and move each mask into a picture: (B, 1, H, W) -> (B, 1, SIZE, SIZE).

    A ``tight`` (B,) glyph fills the picture's height, as digitised forms do; the others are smaller and off-centre.
    """
    count = len(masks)
    (x_mid, x_half), (y_mid, y_half) = _extent(masks, 3), _extent(masks, 2)
    height = torch.where(tight, _uniform((count,), 0.94, 1.04, generator), _uniform((count,), 0.5, 0.95, generator))
    y_scale = y_half / height
    # A wide glyph is squeezed so that it fits the picture.
    x_scale = torch.maximum(y_scale, x_half)
    slack = 1 - torch.stack([x_half / x_scale, y_half / y_scale], -1).clamp(max=1)
    shift = _uniform((count, 2), -1, 1, generator) * slack * torch.where(tight, 0.25, 1.0)[:, None]
    zero = torch.zeros(count)
    theta = torch.stack(
        [
            torch.stack([x_scale, zero, x_mid - x_scale * shift[:, 0]], -1),
            torch.stack([zero, y_scale, y_mid - y_scale * shift[:, 1]], -1),
        ],
        -2,
    )
    grid = F.affine_grid(theta, [count, 1, 2 * SIZE, 2 * SIZE], align_corners=False)
    return F.avg_pool2d(F.grid_sample(masks, grid, align_corners=False), 2)


def scan(masks: torch.Tensor) -> torch.Tensor:
    """What a coarse scan keeps: ink or no ink at SIZE, averaged to SCAN x SCAN grey levels, bicubic back to SIZE."""
    ink = ((masks - 0.5) * 4 + 0.5).clamp(0, 1)
    return F.interpolate(F.avg_pool2d(ink, SIZE // SCAN), size=SIZE, mode="bicubic", align_corners=False).clamp(0, 1)


def colour(masks: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Colour glyph and background: (B, 3, SIZE, SIZE) and the two colours' indices (B,)."""
    count, names = len(masks), len(COLOUR_NAMES)
    palette = torch.tensor(list(COLOURS.values()))
    black, white = COLOUR_NAMES.index("black"), COLOUR_NAMES.index("white")
    draw = torch.rand(count, generator=generator)
    front = torch.randint(names, (count,), generator=generator)
    back = (front + torch.randint(1, names, (count,), generator=generator)) % names
    light, dark = draw < LIGHT_ON_DARK, (draw >= LIGHT_ON_DARK) & (draw < LIGHT_ON_DARK + DARK_ON_LIGHT)
    front = front.masked_fill(light, white).masked_fill(dark, black)
    back = back.masked_fill(light, black).masked_fill(dark, white)
    shades = [
        (palette[index] + 0.06 * torch.randn((count, 3), generator=generator)).clamp(0, 1) for index in (front, back)
    ]
    # Half of the white-on-black pictures are exactly so, as scans are.
    exact = (light & (torch.rand(count, generator=generator) < 0.5))[:, None]
    ink, paper = torch.where(exact, 1.0, shades[0]), torch.where(exact, 0.0, shades[1])
    pixels = paper[:, :, None, None] + (ink - paper)[:, :, None, None] * masks
    return pixels, front, back


class Renderer:
    """Draws batches from a pool; the same pool and seed give the same pictures."""

    def __init__(self, pool: Pool, seed: int, scanned: float = 0.55, noisy: float = 0.25) -> None:
        self._pool = pool
        self._weights = mask_weights(pool)
        self._scanned, self._noisy = scanned, noisy
        self.generator = torch.Generator().manual_seed(seed)

    def sample(self, count: int) -> Batch:
        """``count`` pictures with their attributes."""
        generator = self.generator
        index = torch.multinomial(self._weights, count, replacement=True, generator=generator)
        masks = self._pool.masks[index, None].float() / 255
        masks, shear = deform(vary_stroke(masks, generator), generator)
        tight = torch.rand(count, generator=generator) < 0.7
        masks = place(masks, tight, generator)
        blurred = torch.rand(count, generator=generator) < self._scanned
        masks = torch.where(blurred[:, None, None, None], scan(masks), masks)
        pixels, front, back = colour(masks, generator)
        noisy = torch.rand((count, 1, 1, 1), generator=generator) < self._noisy
        sigma = noisy * _uniform((count, 1, 1, 1), 0.01, 0.06, generator)
        pixels = (pixels + sigma * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)
        attributes = torch.stack([self._pool.identities[index], front, back, shear > SLANT, blurred], -1)
        return Batch(pixels, attributes.long())
