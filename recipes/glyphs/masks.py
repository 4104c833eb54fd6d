"""The pool of base masks: every glyph drawn once in many fonts, single-stroke fonts and handwriting-like strokes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from HersheyFonts import HersheyFonts
from PIL import Image, ImageDraw, ImageFont

from recipes.glyphs.captions import GLYPHS
from recipes.glyphs.strokes import DIGITS, draw_digit

CANVAS = 64
"""Side of a base mask, in pixels."""
BOX = 44
"""Side of the central square that a base mask fills; the margin leaves room for the deformations."""
OVERSAMPLE = 3
"""Strokes are drawn at this many times the canvas and averaged down."""

FONTS: tuple[tuple[str, str], ...] = (
    ("matplotlib", "mpl-data/fonts/ttf/DejaVuSans-*.ttf"),
    ("matplotlib", "mpl-data/fonts/ttf/DejaVuSansMono*.ttf"),
    ("matplotlib", "mpl-data/fonts/ttf/DejaVuSerif-*.ttf"),
    ("matplotlib", "mpl-data/fonts/ttf/STIXGeneral*.ttf"),
    ("matplotlib", "mpl-data/fonts/ttf/cmss10.ttf"),
    ("matplotlib", "mpl-data/fonts/ttf/cmtt10.ttf"),
    ("font_roboto", "files/*.ttf"),
    ("font_source_sans_pro", "files/*.ttf"),
    ("font_caladea", "files/*.ttf"),
    ("font_fredoka_one", "files/*.ttf"),
    ("font_amatic_sc", "files/*.ttf"),
)
"""Outline fonts: the package that ships them and the files' pattern inside it."""
SMALL_CAPITALS = ("AmaticSC",)
"""Fonts whose lowercase is drawn as small capitals: only their digits and capitals are used."""
HERSHEY = ("futural", "futuram", "cursive", "rowmans", "rowmand", "scripts", "scriptc", "timesi", "timesr")
"""Single-stroke fonts."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SOURCES = ("font", "hershey", "hand")


@dataclass(frozen=True)
class Pool:
    """Base masks (N, CANVAS, CANVAS) uint8, their identities (N,) and their sources (N,), indices into SOURCES."""

    masks: torch.Tensor
    identities: torch.Tensor
    sources: torch.Tensor


def font_files() -> list[Path]:
    """The outline fonts installed, in a fixed order. A missing package is an error: it would change the data."""
    files: list[Path] = []
    for package, pattern in FONTS:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(
                f"{package} brings fonts for this recipe: pip install -r recipes/glyphs/requirements.txt"
            )
        files += sorted(Path(spec.origin).parent.glob(pattern))
    return files


def fit(mask: Image.Image) -> np.ndarray:
    """Crop a grey image to its ink and scale it, aspect kept, to the canvas's central BOX: uint8 (CANVAS, CANVAS)."""
    bounds = mask.point(lambda level: 255 * (level > 64)).getbbox()
    if bounds is None:
        raise ValueError("nothing was drawn")
    ink = mask.crop(bounds)
    scale = BOX / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(ink.resize((width, height), Image.Resampling.LANCZOS), ((CANVAS - width) // 2, (CANVAS - height) // 2))
    return np.asarray(canvas)


def draw_outline(font: Font, char: str) -> np.ndarray:
    """The character in an outline font, as a base mask."""
    image = Image.new("L", (4 * CANVAS, 4 * CANVAS))
    ImageDraw.Draw(image).text((CANVAS, CANVAS // 2), char, fill=255, font=font)
    return fit(image)


def draw_strokes(lines: list[np.ndarray], width: float) -> np.ndarray:
    """Polylines (any units) drawn with round pens of ``width`` (a part of the larger side), as a base mask."""
    points = np.concatenate(lines)
    low, span = points.min(0), max(np.ptp(points, axis=0).max(), 1e-6)
    size, box = CANVAS * OVERSAMPLE, BOX * OVERSAMPLE
    pen = max(width * box, 1.0)
    # The pen widens the drawing by its own width, so that the polylines get what is left of the box.
    scaled = [(line - low) / span * (box - pen) + (size - box) / 2 for line in lines]
    image = Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)
    for line in scaled:
        draw.line([tuple(point) for point in line.tolist()], fill=255, width=round(pen), joint="curve")
        for x, y in line[[0, -1]].tolist():
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)
    return fit(image)


def _outlines() -> Iterator[tuple[int, np.ndarray]]:
    fonts: list[tuple[str, Font]] = [(path.name, ImageFont.truetype(path, 2 * CANVAS)) for path in font_files()]
    fonts.append(("Aileron", ImageFont.load_default(2 * CANVAS)))
    for name, font in fonts:
        for identity, glyph in enumerate(GLYPHS):
            if not (glyph.char.islower() and name.startswith(SMALL_CAPITALS)):
                yield identity, draw_outline(font, glyph.char)


def _hershey(rng: np.random.Generator, widths: int) -> Iterator[tuple[int, np.ndarray]]:
    font = HersheyFonts()
    for name in HERSHEY:
        font.load_default_font(name)
        for identity, glyph in enumerate(GLYPHS):
            lines = [np.asarray(stroke, dtype=float) for stroke in font.strokes_for_text(glyph.char)]
            for _ in range(widths):
                yield identity, draw_strokes(lines, rng.uniform(0.05, 0.2))


def _hands(rng: np.random.Generator, drawings: int) -> Iterator[tuple[int, np.ndarray]]:
    for identity, glyph in enumerate(GLYPHS):
        for variant in DIGITS.get(glyph.char, ()):
            for _ in range(drawings):
                stretch = np.asarray([rng.uniform(0.5, 1.15), 1.0])
                lines = [line * stretch for line in draw_digit(variant, rng.uniform(0.01, 0.06), rng)]
                yield identity, draw_strokes(lines, rng.uniform(0.08, 0.22))


def build_pool(seed: int = 0, widths: int = 4, drawings: int = 80) -> Pool:
    """Draw the pool: all fonts, ``widths`` pens of each single-stroke font, ``drawings`` of each hand variant."""
    rng = np.random.default_rng(seed)
    families = (_outlines(), _hershey(rng, widths), _hands(rng, drawings))
    drawn = [(identity, mask, source) for source, family in enumerate(families) for identity, mask in family]
    identities, masks, sources = zip(*drawn, strict=True)
    return Pool(torch.from_numpy(np.stack(masks)), torch.tensor(identities), torch.tensor(sources))
