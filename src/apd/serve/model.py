"""The classifier as it is served: bytes of an image to pixels, pixels to probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from apd.data.decode import read_image
from apd.data.unreadable import reason
from apd.models.calibration import Calibration, probabilities
from apd.models.classifier import PromptedCLIP
from apd.serve.refused import Refused

Pixels = NDArray[np.uint8]
"""An image as the encoder wants it: (3, size, size)."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are read. Pillow knows more, some of which start other programs (EPS)."""
_READABLE = " Send JPEG, PNG, WebP, GIF, BMP or TIFF."


class Served:
    """A classifier with fixed classes.

    Args:
        classifier: of a finished run; its class features are computed here, once.
        calibration: of its probabilities; None: they are not calibrated.
    """

    def __init__(self, classifier: PromptedCLIP, calibration: Calibration | None) -> None:
        self.class_names, self.calibration = classifier.class_names, calibration
        self.preprocessing = classifier.encoder.info.preprocessing
        self.device = classifier.encoder.device
        self._frozen = classifier.frozen()

    def decode(self, file: bytes, name: str, most_pixels: int) -> Pixels:
        """Read an image file as in training: turned, on white, resized.

        Args:
            file: its bytes.
            name: for the message.
            most_pixels: how many the image may have as it was sent.

        Raises:
            Refused: too many pixels, or not an image that can be read.
        """

        def opened() -> Image.Image:
            image = Image.open(BytesIO(file), formats=FORMATS)
            if image.width * image.height > most_pixels:
                raise Image.DecompressionBombError
            return image

        try:
            return read_image(opened, self.preprocessing)
        except (Image.DecompressionBombError, MemoryError) as error:
            too_large = f"has more than {most_pixels / 1e6:g} million pixels"
            why = "needs more memory than there is" if isinstance(error, MemoryError) else too_large
            raise Refused(413, f"{name} {why}; send a smaller one.") from error
        except Exception as error:  # Pillow's decoders raise nearly everything for a broken file
            hint = _READABLE if isinstance(error, UnidentifiedImageError) else ""
            raise Refused(422, f"{name} cannot be read ({reason(error)}).{hint}") from error

    def classify(self, images: Sequence[Pixels]) -> list[list[float]]:
        """Probabilities of all classes, image by image.

        Raises:
            ApdError: probabilities that are not finite.
        """
        pixels = torch.from_numpy(np.stack(images)).to(self.device).float() / 255
        with torch.no_grad():
            shown = probabilities(self._frozen(pixels), self.calibration)
        found: list[list[float]] = shown.tolist()
        return found
