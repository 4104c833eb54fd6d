"""The base class of all groups of settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

RECORDED = "recorded"
"""Validation context for the settings of a finished run, whose code may be gone: nothing but training needs it."""


class Section(BaseModel):
    """A group of settings, checked when it is made and never changed; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
