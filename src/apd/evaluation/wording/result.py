"""What an evaluation under other words found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel
from torch import Tensor

from apd.evaluation.result import Accuracy
from apd.evaluation.wording.variants import Variant
from apd.util.progress import counted
from apd.util.text import plain, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

UNDER = ("clean", "transferred", "joint")
"""Images without an attack; attacked under the original words; attacked under the very words they are judged by."""


class Words(BaseModel):
    """One wording and its accuracy, in percent, on clean images and where these are attacked."""

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    clean: float
    transferred: float | None = None
    joint: float | None = None


class Summary(BaseModel):
    """Accuracy over a set of wordings.

    ``mean`` is over the wordings, ``worst_words`` of the one that is worst for all images, ``worst_case`` counts an image only
    if it is right under every wording, the original included.
    """

    mean: float
    worst_words: Accuracy
    worst_case: Accuracy


class Change(BaseModel):
    """All wordings of one kind."""

    variants: list[Words]
    clean: Summary
    transferred: Summary | None = None
    joint: Summary | None = None


class WordingScores(BaseModel):
    """One classifier: accuracy under the original words, then under each kind of change."""

    clean: Accuracy
    attacked: Accuracy | None
    changes: dict[str, Change]


class Wording(WordingScores):
    """All that was found, with its circumstances; eps is in [0,1] pixel units."""

    undefended: WordingScores | None
    attack: str
    eps_text: str
    norm: str
    distance: int
    seed: int
    data: str
    split: str
    classes: str
    n: int
    n_available: int
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    fixed_head: bool
    seconds: float
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __repr__(self) -> str:
        kinds = ", ".join(f"{name} {one.clean.worst_case.accuracy:.2f}" for name, one in self.changes.items())
        where = f"{printable(self.data)} {self.split}, {counted(self.n, 'image')}"
        return f"Wording({where}: {self.clean.accuracy:.2f} %; worst case under {kinds})"

    def __str__(self) -> str:
        """The table as plain text."""
        return plain(self.table(), width=100)

    def table(self) -> RenderableType:
        """A table for a person: rows are changes of words, on clean and on attacked images."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for name in ("words", "images", "mean %", "worst words %", "worst case %", "zero-shot worst case %"):
            table.add_column(name, justify="left" if name in ("words", "images") else "right")
        base = self.undefended
        originals = [("clean", self.clean, None if base is None else base.clean)]
        if self.attacked is not None:
            originals.append(("attacked", self.attacked, None if base is None else base.attacked))
        for images, own, other in originals:
            number = f"{own.accuracy:.2f}"
            table.add_row("original", images, number, number, number, "-" if other is None else f"{other.accuracy:.2f}")
        for name, change in self.changes.items():
            for images in UNDER:
                found: Summary | None = getattr(change, images)
                if found is None:
                    continue
                other = None if base is None else getattr(base.changes[name], images).worst_case
                table.add_row(
                    f"{name} ({len(change.variants)})",
                    images,
                    f"{found.mean:.2f}",
                    f"{found.worst_words.accuracy:.2f}",
                    f"{found.worst_case.accuracy:.2f}",
                    "-" if other is None else f"{other.accuracy:.2f}",
                )
        sampled = f"{self.n} of {self.n_available} images" if self.n < self.n_available else counted(self.n, "image")
        title = f"{printable(self.data)} {self.split}, {sampled}"
        if self.attacked is not None:
            title += f", {printable(self.attack)} at {self.norm} eps {self.eps_text}"
        note = "The prompts replace the words before a class name, so templates change only those after it."
        return Group(Text(title), table, *([Text(note)] if self.fixed_head and "templates" in self.changes else []))


def summary(original: Tensor, variants: Tensor) -> Summary:
    """Summarise which images (N,) are right under the original words, and which (V, N) under others."""
    each = variants.float().mean(dim=1)
    worst = variants[int(each.argmin())]
    always = torch.cat([original[None], variants]).all(dim=0)
    return Summary(
        mean=round(100 * float(each.mean()), 2),
        worst_words=Accuracy.of(worst.tolist()),
        worst_case=Accuracy.of(always.tolist()),
    )


def change(variants: Sequence[Variant], original: dict[str, Tensor], right: dict[str, Tensor]) -> Change:
    """Put one kind of change together.

    Args:
        variants: its V wordings.
        original: images (N,) that are right under the original words, by what was done to the images (`UNDER`).
        right: images (V, N) that are right under these.
    """
    shares = {name: (100 * values.float().mean(dim=1)).tolist() for name, values in right.items()}
    rows = [
        Words(
            class_names=one.class_names,
            templates=one.templates,
            **{name: round(values[place], 2) for name, values in shares.items()},
        )
        for place, one in enumerate(variants)
    ]
    return Change(variants=rows, **{name: summary(original[name], right[name]) for name in right})
