"""The base class of all groups of settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_serializer
from pydantic_core import PydanticCustomError

RECORDED = "recorded"
"""Validation context for the settings of a finished run, whose code may be gone: nothing but training needs it."""


class Section(BaseModel):
    """A group of settings, checked when it is made and never changed; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false (in YAML also yes, no, on and off) for a number, which Python takes as 1 and 0."""
        members = value if isinstance(value, list | tuple) else [value]
        switch = any(isinstance(member, bool) for member in members)
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation) if switch else set()
        number = next((kind for kind in (int, float) if kind in kinds), None)
        if number and not {bool, Any, object} & kinds:
            raise PydanticCustomError(f"{number.__name__}_type", "a number")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation allows, at any depth."""
    return {annotation}.union(*map(_kinds, get_args(annotation))) if get_origin(annotation) is not Literal else set()


class GrowingSection(Section):
    """A section to which settings were added after runs had been kept: at these values, no record names them.

    So an older run keeps its identity, which is a hash of its record.
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
