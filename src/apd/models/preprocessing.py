"""How an encoder wants its images: one small record, read from its own files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image


@dataclass(frozen=True)
class Preprocessing:
    """From a photo to the encoder's square of pixels.

    Args:
        size: side of the square the encoder takes, in pixels.
        resize: side to resize to before cropping, in pixels (the short side for ``crop``, both for ``squash``).
        mode: ``crop`` keeps the aspect ratio and crops the centre (CLIP); ``squash`` does not (SigLIP).
        interpolation: ``bicubic``, ``bilinear``, ``lanczos`` or ``nearest``.
        mean, std: of the normalisation, one value a channel, for pixels in [0,1].
    """

    size: int
    resize: int
    mode: Literal["crop", "squash"]
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def apply(self, image: Image.Image) -> Image.Image:
        """An RGB image of (size, size) pixels, not normalised."""
        filter_ = Image.Resampling[self.interpolation.upper()]
        if self.mode == "squash":
            return image.resize((self.size, self.size), filter_)
        width, height = image.size
        scale = self.resize / min(width, height)
        wide, high = max(self.size, round(width * scale)), max(self.size, round(height * scale))
        left, top = (wide - self.size) // 2, (high - self.size) // 2
        return image.resize((wide, high), filter_).crop((left, top, left + self.size, top + self.size))
