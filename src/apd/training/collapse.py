"""What a person sees of training while it runs, and what it is warned of."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from apd.errors import ApdError
from apd.settings.train import TrainSettings
from apd.util.progress import clock, heartbeat

VANISHED = 0.01
"""An adversarial term (nats) that is as good as 0."""
FALL = 5.0
"""A fall of validation robustness (points) that is no noise."""
_CLIP = 1.0
"""A norm of the gradient to which clipping it calms training."""


class CollapseMonitor:
    """Watches for the known ways in which adversarial prompt training collapses, and explains them.

    Known case: with released settings, a neighbouring method's adversarial term falls to 0.0001 in the second epoch
    while its robust accuracy falls to 0.

    Args:
        settings: of the training, so that no advice is given that is followed already.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        self.best_robust = 0.0

    def check_loss(self, terms: Mapping[str, float], step: int) -> None:
        """Stop where the loss is not finite.

        Args:
            terms: of the loss.
            step: optimiser steps done, the one that these are of included.

        Raises:
            ApdError: naming the term and the way out.
        """
        bad = [f"{name} is {value}" for name, value in terms.items() if not math.isfinite(value)]
        if bad and step == 1:
            bf16 = ", or to train.precision=bf16 (fp32 tells)" if self.settings.precision == "bf16" else ""
            raise ApdError(
                f"The term {bad[0]} in the first step, before anything was learned: it is due to the method's loss or to "
                f"the images{bf16}."
            )
        if bad:
            raise ApdError(f"Training diverged: the term {bad[0]} at step {step}. {self._calmer()}")

    def _calmer(self) -> str:
        """What may keep training from diverging, and is not done yet."""
        optimizer = self.settings.optimizer
        ways = ["lower train.optimizer.lr"]
        if optimizer.clip is None or optimizer.clip > _CLIP:
            ways.append(f"set train.optimizer.clip={_CLIP:g}")
        if self.settings.precision != "fp32":
            ways.append("set train.precision=fp32")
        text = ", or ".join(ways)
        return f"{text[0].upper()}{text[1:]}."

    def check_logits(self, z: Tensor) -> None:
        """Stop where validation logits are not finite: the loss shows it a step later only, and after the last step never.

        Raises:
            ApdError: naming the way out.
        """
        if not bool(z.isfinite().all()):
            raise ApdError(f"Training diverged: the logits of validation images are not finite. {self._calmer()}")

    def check_validation(
        self, terms: Mapping[str, float], clean: float, robust: float, largest_share: float, classes: int
    ) -> list[str]:
        """Warnings after a look at the validation split; accuracies in percent.

        Args:
            terms: the last logged training terms.
            clean: validation accuracy.
            robust: validation accuracy under the short attack.
            largest_share: share of the images that the most predicted class takes.
            classes: number of classes.
        """
        warnings = []
        adversarial = [value for name, value in terms.items() if name.startswith("adv_")]
        if adversarial and sum(adversarial) < VANISHED and robust < self.best_robust - FALL:
            warnings.append(
                f"Collapse: the adversarial term is {sum(adversarial):.4f} while validation robustness fell from "
                f"{self.best_robust:.1f} to {robust:.1f}: the training attack no longer finds anything, a stronger one does. "
                "Try more train.attack.steps with a smaller step_size, or a lower learning rate."
            )
        if classes > 1 and largest_share > 0.99 and clean < 100 * 1.5 / classes + 1e-9:
            warnings.append(
                "Collapse: every validation image is given the same class. Lower train.optimizer.lr or train.eps."
            )
        self.best_robust = max(self.best_robust, robust)
        return warnings


class TrainingProgress:
    """A bar with the time left on standard error; in a pipe, a line a validation and a sign of life between them.

    Silent unless ``visible``.
    """

    def __init__(self, total: int, done: int, title: str, visible: bool = True) -> None:
        self.console = Console(stderr=True, quiet=not visible, file=sys.stderr)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self.console,
            disable=not (visible and self.console.is_terminal),
        )
        self.task = self.progress.add_task(title, total=total, completed=done, status="")
        self.alive = heartbeat(self._beat, self.say, visible and self.progress.disable)

    def __enter__(self) -> TrainingProgress:
        self.progress.start()
        self.alive.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.alive.__exit__(None, None, None)
        self.progress.stop()

    def _beat(self) -> str:
        task = self.progress.tasks[self.task]
        return f"{task.description}: step {task.completed:.0f} of {task.total:.0f}, {clock(task.elapsed or 0)}"

    def advance(self, steps: int = 1) -> None:
        """So many more optimiser steps are done."""
        self.progress.advance(self.task, steps)

    def show(self, record: Mapping[str, Any]) -> None:
        """Show the latest figures beside the bar."""
        numbers = " ".join(
            f"{k} {v:.3f}" for k, v in record.items() if isinstance(v, float) and k not in ("lr", "epoch")
        )
        self.progress.update(self.task, status=numbers)

    def say(self, text: str, warning: bool = False) -> None:
        """A line that stays."""
        self.console.print(text, style="yellow" if warning else None, highlight=False)
