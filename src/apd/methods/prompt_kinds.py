"""Prompt settings that define families of methods: which branch learns tokens, and how the branches are coupled."""

from __future__ import annotations

TEXT_ONLY = {"visual_tokens": 0, "coupling": "none", "frame": 0.0}
VISUAL_ONLY = {"text_tokens": 0, "class_specific": False, "coupling": "none", "frame": 0.0}
TEXT_TO_VISION = {"coupling": "text-to-vision", "class_specific": False, "frame": 0.0}
VISION_TO_TEXT = {"coupling": "vision-to-text", "class_specific": False, "frame": 0.0}
