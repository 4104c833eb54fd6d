"""A run on three colours, and its fixtures' values."""

from __future__ import annotations

NAMES, TEMPLATES = ["red", "green", "blue"], ["a photo of a {}."]
