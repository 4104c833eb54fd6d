"""The settings of `apd.evaluate` as its keyword arguments, so that editors complete them and mypy knows a misspelt one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from apd.attacks import EvaluationAttack, TrainingAttack
from apd.attacks.threat import Norm
from apd.data.settings import Split, Which

Attack = str | EvaluationAttack | TrainingAttack | type[EvaluationAttack] | type[TrainingAttack]


class EvaluationOptions(TypedDict, total=False):
    """See `apd.evaluation.settings.EvaluationSettings`, which has the defaults; a test compares names and types.

    ``attacks`` are names, attacks or their classes, one or several.
    """

    attacks: Attack | Sequence[Attack]
    eps: str | float
    norm: Norm
    seed: int
    split: Split
    classes: Which
    corruption: str | None
    limit: int | Literal["auto", "all"] | None
    batch_size: int | None
    control: bool
    checks: bool
    skip_bad_images: bool
    quiet: bool
