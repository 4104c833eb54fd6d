"""The sentence about a class that hand-written prompts have where nobody names another."""

from __future__ import annotations

DEFAULT_TEMPLATES = ("a photo of a {}.",)
"""As in CLIP's own zero-shot classification (Radford et al. 2021, section 3.1.4)."""
