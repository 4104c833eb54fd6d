"""The training loop and its settings."""

from __future__ import annotations

from apd.settings.train import TrainSettings

__all__ = ["TrainSettings"]
