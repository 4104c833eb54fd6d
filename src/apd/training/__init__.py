"""The training loop and its settings."""

from __future__ import annotations

from apd.training.settings import TrainSettings

__all__ = ["TrainSettings"]
