"""What every form of export is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from apd.errors import InputError
from apd.export.settings import ExportSettings, Precision
from apd.models.classifier import PromptedCLIP
from apd.runs.folder import Run

Runner = Callable[[Tensor], Tensor]
"""From pixels (B,3,S,S) in [0,1], float32 on the CPU, to logits (B,C)."""


@dataclass(frozen=True)
class Source:
    """What is exported.

    Args:
        run: the finished run.
        classifier: its classifier, on the CPU.
        settings: how it is exported.
    """

    run: Run
    classifier: PromptedCLIP
    settings: ExportSettings


class Form(ABC):
    """A form of export: writes its files, and runs the model from them alone."""

    name: ClassVar[str]
    suffix: ClassVar[str] = ""
    """Of the one file that an export is; empty for a folder."""
    precisions: ClassVar[tuple[Precision, ...]] = ("float32",)
    one_feature_per_class: ClassVar[bool] = False
    """Whether a class is one feature in it, whatever the image."""

    def is_folder(self, settings: ExportSettings) -> bool:
        """Whether the export is a folder rather than a file."""
        return not self.suffix or settings.open_vocabulary

    def check(self, source: Source) -> None:
        """Refuse what this form cannot represent, before any work.

        Raises:
            InputError: with the way out.
        """
        settings = source.settings
        if settings.precision not in self.precisions:
            raise InputError(
                f"--precision {settings.precision} is not available for --to {self.name}, only {', '.join(self.precisions)}; "
                "use --to onnx."
            )
        prompts = source.classifier.prompts
        if (
            prompts is not None
            and prompts.spec.experts > 1
            and (settings.open_vocabulary or self.one_feature_per_class)
        ):
            raise InputError(
                f"The prompts of {source.run.path} are a mixture, in which every image has class features of its own: use --to "
                "onnx or torch, without --open-vocabulary."
            )

    @abstractmethod
    def write(self, source: Source, place: Path) -> dict[str, Any]:
        """Write the model to ``place``, a file or a folder that does not exist yet.

        Returns:
            What the description beside it must say more.
        """

    @abstractmethod
    def load(self, source: Source, place: Path) -> list[Runner]:
        """Load what was written, and nothing else, as functions for the run's classes: each way in which it can be loaded."""
