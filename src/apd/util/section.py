"""The base class of all groups of settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_serializer

RECORDED = "recorded"
"""Validation context for the settings of a finished run, whose code may be gone: nothing but training needs it."""


class Section(BaseModel):
    """A group of settings, checked when it is made and never changed; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GrowingSection(Section):
    """A section to which settings were added after runs had been kept: at these values, no record names them.

    So a run of before keeps its identity, which is a hash of its record.
    """

    unrecorded: ClassVar[Mapping[str, Any]] = {}

    @model_serializer(mode="wrap")
    def _without_unrecorded(self, serialize: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        record = serialize(self)
        return {
            name: value
            for name, value in record.items()
            if name not in self.unrecorded or value != self.unrecorded[name]
        }
