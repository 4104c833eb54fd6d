"""One picture of an attack: digits, what is added to them, and what two classifiers say."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from apd.evaluation.examples import Attacked, amplified

SIDE, GAP, TEXT = 96, 12, 44
"""Pixels of an image on the page, between images, and of the text below them."""
GOOD, BAD, INK = "#1a7f37", "#cf222e", "#1f2328"


def draw(x: Tensor, labels: Tensor, class_names: Sequence[str], results: Sequence[Attacked], title: str) -> bytes:
    """Draw a PNG: a row for each image, and for each classifier the perturbation, the attacked image and the answer.

    Perturbations are amplified so that the largest fills the range, and grey means unchanged.

    Args:
        x: (N,3,S,S) in [0,1], clean.
        labels: (N,).
        class_names: in label order.
        results: what happened under each classifier.
        title: one or two lines on top.
    """
    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    width = GAP + (SIDE + GAP) + len(results) * 2 * (SIDE + GAP)
    top = 4 * GAP + 52
    page = Image.new("RGB", (max(width, 520), top + len(x) * (SIDE + TEXT)), "white")
    pen = ImageDraw.Draw(page)
    pen.text((GAP, GAP), title, INK, font)
    pen.text((GAP, top - 20), "image", INK, small)
    for row, (image, label) in enumerate(zip(x, labels.tolist(), strict=True)):
        y = top + row * (SIDE + TEXT)
        page.paste(_picture(image), (GAP, y))
        pen.text((GAP, y + SIDE + 4), class_names[label], INK, small)
        for place, result in enumerate(results):
            left = 2 * GAP + SIDE + place * 2 * (SIDE + GAP)
            if row == 0:
                pen.text((left, top - 20), f"{result.title}: added, attacked", INK, small)
            page.paste(_picture(amplified(result.images[row] - image)[0]), (left, y))
            page.paste(_picture(result.images[row]), (left + SIDE + GAP, y))
            said, attacked = (class_names[int(answer[row].argmax())] for answer in (result.before, result.after))
            colour = GOOD if int(result.after[row].argmax()) == label else BAD
            pen.text((left, y + SIDE + 4), f"before: {said}", INK, small)
            pen.text((left + SIDE + GAP, y + SIDE + 4), f"says: {attacked}", colour, small)
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    return buffer.getvalue()


def _picture(image: Tensor) -> Image.Image:
    array = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array).resize((SIDE, SIDE), Image.Resampling.NEAREST)
