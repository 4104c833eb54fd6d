"""The base class of all groups of settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A group of settings, checked when it is made and never changed; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
