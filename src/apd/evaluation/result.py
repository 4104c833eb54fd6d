"""What an evaluation says, for a program and for a person."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, computed_field
from torch import Tensor

from apd.data.unreadable import how_to_convert
from apd.evaluation.statistics import wilson
from apd.runs.chance import chance_note
from apd.runs.reliability import Reliability, reliability
from apd.util.messages import by_command
from apd.util.progress import all_of, counted
from apd.util.text import plain, printable

if TYPE_CHECKING:
    from rich.console import RenderableType


class Accuracy(BaseModel):
    """A share of samples classified rightly, in percent, with its 95 % Wilson interval."""

    accuracy: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, right: Sequence[bool], **more: Any) -> Self:
        """Compute it from one boolean per sample."""
        k, n = sum(right), len(right)
        low, high = wilson(k, n)
        return cls(accuracy=round(100 * k / n, 2), interval=(round(100 * low, 2), round(100 * high, 2)), **more)


class AttackAccuracy(Accuracy):
    """Accuracy under one attack, and how the attack went.

    ``runs`` names the attacks it is made of, ``fooled_by`` counts the samples each of them fooled, ``flags`` the
    warnings of the attack's library; ``batch_sizes`` are those it ran with (AutoAttack draws per batch).
    ``seconds`` and ``flags`` are of all kept samples, those of earlier calls included, ``seconds_earlier`` of those alone.
    """

    seconds: float
    seconds_earlier: float = 0.0
    runs: tuple[str, ...]
    fooled_by: dict[str, int]
    flags: dict[str, int]
    batch_sizes: tuple[int, ...]


class Scores(BaseModel):
    """Accuracies in percent: clean, under each attack, and under the worst attack sample by sample."""

    clean: float
    clean_interval: tuple[float, float]
    attacks: dict[str, AttackAccuracy]
    worst: Accuracy


class ClassScores(BaseModel):
    """One class: number of samples, clean and worst-case accuracy in percent."""

    n: int
    clean: float
    worst: float


class Check(BaseModel):
    """A health check: ``passed`` is None where the value is for information only.

    A failed one makes the result unreliable, unless it only ``warns``: of a model that is of little use, soundly measured.
    """

    name: str
    passed: bool | None
    value: float
    message: str
    warns: bool = False


SCHEMA_VERSION: Literal[1] = 1
"""Version of a result as JSON; raised when a field is removed or means something else. `apd schema` prints the schema."""


class ResultRecord(Scores):
    """A result as JSON has it, with its circumstances; eps is in [0,1] pixel units at ``image_size`` pixels.

    ``classifier`` is a hash of weights, prompts, class names and code, ``images_sha256`` one of the images, with ids and labels.
    ``n`` images of the ``n_available`` in the split, drawn at random where they are fewer: ``limit`` is what was asked for.
    ``batch_size`` is the largest that could have been used, `AttackAccuracy.batch_sizes` are those that were. ``own_data`` says
    whether a run was judged on the data it was trained on; None for other classifiers.
    """

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    classifier: str
    images_sha256: str
    n: int
    n_available: int
    limit: int | str
    eps: float
    eps_text: str
    norm: str
    seed: int
    undefended: Scores | None
    versions: dict[str, str]
    checks: list[Check]
    per_class: dict[str, ClassScores]
    data: str
    own_data: bool | None = None
    split: str
    classes: str
    corruption: str | None = None
    n_classes: int | None = None
    image_size: int
    precision: str
    batch_size: int
    skipped_images: tuple[str, ...]

    @property
    def reliability(self) -> Reliability:
        """Whether the accuracies can be trusted, and why not."""
        return reliability({"checks": [check.model_dump() for check in self.checks]})

    @computed_field  # type: ignore[prop-decorator]
    @property
    def reliable(self) -> bool | None:
        """Whether the accuracies can be trusted: no health check found otherwise; None where none ran."""
        return self.reliability.reliable

    @computed_field  # type: ignore[prop-decorator]
    @property
    def unreliable_because(self) -> tuple[str, ...]:
        """Why the accuracies cannot be trusted; empty where they can."""
        return self.reliability.because


class Result(ResultRecord):
    """All that an evaluation found: its record, and what became of each image, which is kept beside it."""

    ids: tuple[str, ...] = Field(exclude=True, repr=False)
    labels: tuple[int, ...] = Field(exclude=True, repr=False)
    predictions: dict[str, tuple[int, ...]] = Field(exclude=True, repr=False)
    pixels: tuple[str, ...] = Field((), exclude=True, repr=False)
    class_names: tuple[str, ...] = Field((), exclude=True, repr=False)
    undefended_predictions: dict[str, tuple[int, ...]] | None = Field(None, exclude=True, repr=False)
    is_control: bool = Field(False, exclude=True, repr=False)
    """Whether the classifier is zero-shot CLIP itself."""

    @property
    def sound(self) -> bool:
        """Whether nothing says that the accuracies cannot be trusted; also true where no health checks ran."""
        return self.reliable is not False

    @property
    def chance_note(self) -> str | None:
        """A sentence where the clean accuracy cannot be told from guessing; None where it can."""
        known = self.model_dump(include={"clean", "clean_interval", "n_classes", "undefended"})
        return chance_note(known, untrained=self.is_control)

    def robust_mask(self, attack: str = "worst") -> Tensor:
        """Which samples (n,) are right under ``clean``, one attack, or the ``worst`` of all (clean included)."""
        labels = torch.tensor(self.labels)
        names = list(self.predictions) if attack == "worst" else [attack]
        return torch.stack([torch.tensor(self.predictions[name]) == labels for name in names]).all(dim=0)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single samples, as JSON values."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __repr__(self) -> str:
        worst = f", {self.worst.accuracy:.2f} % under attack" if self.attacks else ""
        where = f"{printable(self.data)} {self.split}, {counted(self.n, 'image')}, {self.norm} eps {self.eps_text}"
        return f"Result({where}: {self.clean:.2f} % clean{worst}{'' if self.sound else '; NOT reliable'})"

    def _repr_html_(self) -> str:
        """The table and the health checks for notebooks."""
        from apd.evaluation.shown import result_html

        return result_html(self, [line for line, _ in (self._headline(), *self._notes())])

    def __str__(self) -> str:
        """The table as plain text."""
        return plain(self.table(), width=80)

    def table(self) -> RenderableType:
        """A table and the health checks, for a person."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        sampled = self.n + len(self.skipped_images) < self.n_available
        images = f"{self.n} of {self.n_available} images" if sampled else counted(self.n, "image")
        under = f" under {self.corruption}" if self.corruption else ""
        title = (
            f"{printable(self.data)} {self.split}, {images}{under}, {self.norm} eps {self.eps_text} "
            f"at {self.image_size} px, {self.precision}"
        )
        table = Table()
        table.add_column("attack", no_wrap=True, overflow="ellipsis", max_width=_LONGEST)
        # Zero-shot CLIP itself needs no second column of its own numbers.
        base = None if self.is_control else self.undefended
        for name in ("accuracy %", "95 % interval", *(("zero-shot %",) if base else ()), "time"):
            table.add_column(name, justify="right")

        def row(name: str, accuracy: float, ends: tuple[float, float], other: float | None, time: str = "") -> None:
            beside = [] if other is None else [f"{other:.2f}"]
            style = "bold" if name == _WORST else None
            table.add_row(Text(name), f"{accuracy:.2f}", _ends(ends), *beside, time, style=style)

        row("clean", self.clean, self.clean_interval, base.clean if base else None)
        for name, score in self.attacks.items():
            other = base.attacks[name].accuracy if base else None
            seconds = f"{score.seconds - score.seconds_earlier:.0f} s"
            row(printable(name), score.accuracy, score.interval, other, seconds)
        if len(self.attacks) > 1:
            row(_WORST, self.worst.accuracy, self.worst.interval, base.worst.accuracy if base else None)
        first, *notes = (Text(printable(line), style=style) for line, style in (self._headline(), *self._notes()))
        return Group(Text(title), first, table, *notes)

    def _headline(self) -> tuple[str, str]:
        """Whether to trust the table, and the style of that line."""
        style = {True: "green", False: "bold red", None: "yellow"}[self.reliable]
        return f"reliable: {self.reliability.describe()}", style

    def _notes(self) -> Iterator[tuple[str, str]]:
        """Lines below the table, and their style."""
        for name, score in self.attacks.items():
            # What was kept may be of more images than are asked for now.
            earlier = f"{score.seconds_earlier:.0f} s in earlier calls" if score.seconds_earlier else ""
            parts = ", ".join(score.runs) if score.runs != (name,) else ""
            if parts or earlier:
                yield f"{name}: {'; '.join(filter(None, (parts, earlier)))}", ""
        if self.skipped_images:
            hint = how_to_convert(self.skipped_images)
            yield f"{counted(len(self.skipped_images), 'unreadable image')} left out.{hint}", "yellow"
        if self.chance_note is not None:
            yield self.chance_note, "bold yellow"
        judged = [check for check in self.checks if check.passed is not None]
        failed = [check for check in judged if not check.passed]
        if failed:
            count = sum(not check.warns for check in failed)
            warning = f", {counted(len(failed) - count, 'warning')}" if count < len(failed) else ""
            yield f"Health checks: {count} of {len(judged)} failed{warning}.", "bold red" if count else "yellow"
        elif judged:
            where = by_command("--json has them", "see result.checks")
            yield f"Health checks: {all_of(len(judged))} passed ({where}).", "green"
        for check in failed:
            mark, style = ("WARN", "yellow") if check.warns else ("FAIL", "red")
            yield f"{mark} {check.name}: {check.message}", style


_WORST = "worst of all"
_LONGEST = 24
"""Columns of an attack's name in a table of 80; attacks of other packages may have any name."""


def _ends(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.2f} - {interval[1]:.2f}"
