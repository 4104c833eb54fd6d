"""How many optimiser steps a training takes, and how learning rate and eps change over them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from apd.attacks.threat import ThreatModel
from apd.settings.train import TrainSettings


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up over ``warmup`` steps, then a cosine to 0 at ``steps`` (step counts from 0).

    >>> [round(learning_rate(s, 4, 2, 1.0), 2) for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def warmed_up(step: int, warmup: int, start: float, wait: int = 0) -> float:
    """Share of the full eps at a step: 0 for ``wait`` steps, linear from ``start`` to 1 over ``warmup`` steps, then 1.

    >>> [warmed_up(s, 4, 0.2, wait=1) for s in (0, 2, 4, 10)]
    [0.0, 0.6, 1.0, 1.0]
    """
    if step < wait:
        return 0.0
    step -= wait
    return start + (1 - start) * min(1.0, (step + 1) / warmup) if warmup else 1.0


@dataclass(frozen=True)
class Schedule:
    """The optimiser steps of a training, counted from 0.

    Settings in epochs mean passes over the training images. With ``train.steps`` they mean shares of the training instead, of
    which ``train.epochs`` make up the whole: so they fall on the same steps, however many images there are.

    Args:
        settings: the section ``train``.
        batches: optimiser steps in a pass over the training images.
    """

    settings: TrainSettings
    batches: int

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.settings.steps or self.settings.epochs * self.batches

    def span(self, epochs: float) -> int:
        """Return the optimiser steps of so many epochs of the settings."""
        return round(epochs * self.steps / self.settings.epochs if self.settings.steps else epochs * self.batches)

    @property
    def validate_every(self) -> int:
        """Optimiser steps between two validations, at least one."""
        return max(1, self.span(self.settings.validate_every))

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return learning_rate(step, self.steps, self.span(self.settings.warmup_epochs), self.settings.optimizer.lr)

    def threat(self, step: int) -> ThreatModel:
        """Return the budget of a step; the attack's step size is a share of it and grows along."""
        s = self.settings
        # Rounded where they end, and before the last step: the full eps is reached, however few steps there are.
        wait = min(self.span(s.eps_warmup_wait), self.steps - 1)
        warmup = min(self.span(s.eps_warmup_wait + s.eps_warmup_epochs), self.steps) - wait
        share = warmed_up(step, warmup, s.eps_warmup_from, wait)
        return replace(s.threat, eps=share * s.threat.eps)
