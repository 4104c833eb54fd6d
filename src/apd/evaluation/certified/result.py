"""What a certification found: a curve of certified accuracy, and each image's radius."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from apd.evaluation.certified.smoothing import Smoothing, Votes
from apd.evaluation.result import Accuracy
from apd.util.progress import counted
from apd.util.text import plain, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

CONTRADICTION = 0.001
"""Probability with which an attacked image is taken for a broken certificate although chance alone made its votes."""


class CertifiedImage(BaseModel):
    """One image: its class, the smoothed class (None: abstains), and the certified L2 radius around it."""

    id: str
    label: int
    predicted: int | None
    radius: float

    def holds(self, radius: float) -> bool:
        """Whether it is certified to keep its right class within this radius."""
        return self.predicted == self.label and self.radius > radius


class CertifiedPoint(Accuracy):
    """Certified accuracy at one radius; ``attacked`` is what an attack on the smoothed classifier leaves there."""

    radius: float
    attacked: Accuracy | None = None


class CertifiedScores(BaseModel):
    """Certified accuracy of one classifier, in percent.

    ``mean_radius`` is the average certified radius, an image of the wrong class counting 0 (Zhai 2020). ``contradictions``
    counts images that an attack fooled within their certified radius beyond chance: there must be none.
    """

    curve: list[CertifiedPoint] = Field(min_length=1)
    abstained: int
    mean_radius: float
    contradictions: int
    images: list[CertifiedImage]


class Certified(CertifiedScores):
    """All that a certification found, with its circumstances; sigma and radii are L2 in [0,1] pixel units at ``image_size``.

    ``own_data`` says of a run's whether it is on the data of the training; None where that was not recorded.
    """

    sigma: float
    n0: int
    n: int
    alpha: float
    largest_radius: float
    seed: int
    undefended: CertifiedScores | None
    data: str
    split: str
    classes: str
    n_images: int
    n_available: int
    n_classes: int
    image_size: int
    skipped_images: tuple[str, ...]
    seconds: float
    versions: dict[str, str]
    own_data: bool | None = None

    @property
    def sound(self) -> bool:
        """Whether no attack contradicted a certificate."""
        others = [] if self.undefended is None else [self.undefended]
        return not any(scores.contradictions for scores in (self, *others))

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __repr__(self) -> str:
        return (
            f"Certified({printable(self.data)} {self.split}, {counted(self.n_images, 'image')}, sigma {self.sigma:g}: "
            f"{self.curve[0].accuracy:.2f} % at radius 0, mean radius {self.mean_radius:.3f})"
        )

    def __str__(self) -> str:
        """The table as plain text."""
        return plain(self.table(), width=80)

    def table(self) -> RenderableType:
        """A table for a person."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        sampled = self.n_images + len(self.skipped_images) < self.n_available
        images = f"{self.n_images} of {self.n_available} images" if sampled else counted(self.n_images, "image")
        title = f"{printable(self.data)} {self.split}, {images}, noise of sigma {self.sigma:g} at {self.image_size} px"
        attacked, base = self.curve[0].attacked is not None, self.undefended
        table = Table()
        columns = ["L2 radius", "certified %", "95 % interval", *(["attacked %"] if attacked else []), "zero-shot %"]
        for name in columns:
            table.add_column(name, justify="right")
        for place, point in enumerate(self.curve):
            row = [f"{point.radius:.3g}", f"{point.accuracy:.2f}", f"{point.interval[0]:.2f} - {point.interval[1]:.2f}"]
            row += [f"{point.attacked.accuracy:.2f}"] if point.attacked is not None else []
            table.add_row(*row, f"{base.curve[place].accuracy:.2f}" if base else "-")
        notes = [Text(line, style=style) for line, style in self._notes()]
        return Group(Text(title), table, *notes)

    def _notes(self) -> list[tuple[str, str]]:
        draws = f"{self.n0} + {self.n} draws per image, each certificate right with probability {1 - self.alpha:g}"
        about = f"{draws}; abstained on {counted(self.abstained, 'image')}; mean radius {self.mean_radius:.3f}."
        about += f" Radii beyond {self.largest_radius:.3g} need more draws (--n)."
        lines = [(about, "")]
        if not self.sound:
            lines.append(("An attack fooled images within their certified radius: do not trust this.", "bold red"))
        return lines


def scores(
    images: Sequence[CertifiedImage],
    radii: Sequence[float],
    attacked: Mapping[float, Mapping[str, Votes]] | None = None,
) -> CertifiedScores:
    """Put a curve together.

    Args:
        images: what is proved of each.
        radii: where the curve has its points.
        attacked: votes on the images that an attack found at each radius, by id; an image that is missing had fallen to a
            smaller one. None: nothing was attacked.
    """
    curve = []
    broken: set[str] = set()
    for radius in radii:
        under = None
        if attacked is not None:
            found = attacked[radius]
            under = Accuracy.of([one.id in found and found[one.id].winner == one.label for one in images])
            broken |= {one.id for one in images if one.holds(radius) and _refuted(found.get(one.id), one.label)}
        certified = [one.holds(radius) for one in images]
        curve.append(CertifiedPoint.of(certified, radius=radius, attacked=under))
    proved = [one.radius if one.predicted == one.label else 0.0 for one in images]
    return CertifiedScores(
        curve=curve,
        abstained=sum(one.predicted is None for one in images),
        mean_radius=round(sum(proved) / len(proved), 6),
        contradictions=len(broken),
        images=list(images),
    )


def _refuted(found: Votes | None, label: int) -> bool:
    """Whether so few draws vote for the label that it cannot have the majority."""
    from scipy.stats import binomtest

    if found is None:
        return False
    return bool(binomtest(found.counts[label], sum(found.counts), 0.5, alternative="less").pvalue <= CONTRADICTION)


def certified_images(
    ids: Sequence[str], labels: Sequence[int], found: Sequence[Votes], how: Smoothing
) -> list[CertifiedImage]:
    """Turn votes into certificates."""
    rows = []
    for id_, label, votes in zip(ids, labels, found, strict=True):
        certificate = how.certify(votes)
        rows.append(
            CertifiedImage(
                id=id_, label=label, predicted=certificate.predicted, radius=math.floor(certificate.radius * 1e6) / 1e6
            )
        )
    return rows
