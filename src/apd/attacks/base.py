"""What every training attack is: images of high objective within the threat model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from apd.attacks.objectives import Objective
from apd.attacks.threat import ThreatModel
from apd.errors import InputError
from apd.util.text import short

if TYPE_CHECKING:
    from typing import Self

    from apd.attacks.settings import AttackSettings

Attack = Callable[[Objective, Tensor, ThreatModel, Tensor], Tensor]
"""``attack(objective, x, threat, seeds) -> x_adv``: images (B,3,H,W) in [0,1] and int64 seeds (B,), one per sample."""


class TrainingAttack:
    """An attack that ``train.attack.kind`` can name.

    A subclass with `__call__` is enough for one of your own. Its constructor takes what ``train.attack.options`` holds.
    """

    moves_with_prompts: ClassVar[bool] = False
    """Whether the outer loss's own backward pass moves the pixels, so that no pass is spent on the attack."""

    @classmethod
    def from_settings(cls, settings: AttackSettings) -> Self:
        """Build the attack that the section ``train.attack`` describes."""
        return cls(**settings.options)

    @classmethod
    def takes_options(cls) -> bool:
        """Whether ``train.attack.options`` are its settings, rather than the section's own fields."""
        return cls.from_settings.__func__ is TrainingAttack.from_settings.__func__  # type: ignore[attr-defined]

    @property
    def passes(self) -> int:
        """Forward and backward passes of the student per image that the attack itself takes."""
        return 1

    @property
    def needs_budget(self) -> bool:
        """Whether it leaves images as they are where eps is 0, so that it need not run."""
        return True

    @property
    def starts_at_clean(self) -> bool:
        """Whether its first gradient is that at the clean image itself."""
        return False

    def check_threat(self, threat: ThreatModel) -> None:
        """Check that it can attack within a budget: told with the settings, before anything is loaded.

        Raises:
            InputError: it cannot.
        """

    def __call__(self, objective: Objective, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        """Return adversarial images (B,3,H,W) for the images ``x`` in [0,1]; ``seeds`` (B,) int64, one per sample."""
        raise TypeError(f"{type(self).__name__} must define __call__(objective, x, threat, seeds)")


def check_numbers(
    name: str,
    above_0: Mapping[str, float],
    from_0: Mapping[str, float] | None = None,
    whole: Mapping[str, int] | None = None,
) -> None:
    """Check the settings of an attack, which come from a file as they stand there.

    Args:
        name: the attack's.
        above_0: finite numbers above 0, by setting.
        from_0: finite numbers of 0 or more.
        whole: whole numbers of 0 or more.

    Raises:
        InputError: naming the setting and its value.
    """
    for wanted, values, kinds, lowest in (
        ("above 0", above_0, int | float, math.ulp(0.0)),
        ("of 0 or more", from_0 or {}, int | float, 0.0),
        ("of 0 or more, and whole", whole or {}, int, 0.0),
    ):
        for setting, value in values.items():
            if not isinstance(value, kinds) or isinstance(value, bool) or not lowest <= value < math.inf:
                raise InputError(f"{setting} of {name} must be a number {wanted}, got {short(repr(value))}.")


def like(x: Tensor, images: object, name: str) -> Tensor:
    """Return the images that an attack made of ``x`` (B,3,H,W), detached, if they have its shape.

    Raises:
        InputError: something else, with the attack's ``name``.
    """
    if isinstance(images, Tensor) and images.shape == x.shape and images.is_floating_point():
        return images.detach().to(x)
    kind = f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
    raise InputError(f"The attack {name} must return float images of shape {tuple(x.shape)}, but returns {kind}.")
