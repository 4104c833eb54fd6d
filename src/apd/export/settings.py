"""What can be set about an export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from apd.attacks import find
from apd.attacks.threat import EpsText
from apd.errors import InputError, nearest
from apd.settings.explain import explain, setting_names
from apd.util.section import Section

Precision = Literal["float32", "float16", "int8"]


class ExportSettings(Section):
    """What an export holds, and how it is checked."""

    precision: Precision = Field("float32", description="of the weights; float16 and int8 for onnx, at a price")
    open_vocabulary: bool = Field(False, description="with the text tower, for other class names than the run's")
    overwrite: bool = Field(False, description="replace an export that is there")
    model: str | None = Field(None, description="where the CLIP model is now, if it has moved")
    check_images: int = Field(200, ge=64, description="images on which the export is compared with the original")
    measure: int | None = Field(
        None, ge=1, description="test images on which the price in accuracy is measured; null: none"
    )
    attack: str = Field("pgd-20", description="makes the adversarial images of that measurement, on the original")
    eps: EpsText | None = Field(None, description="its budget in [0,1] pixel units; null: the run's")
    license: str = Field("other", description="licence in the model card of a Hugging Face export")

    @field_validator("attack")
    @classmethod
    def _known(cls, value: str) -> str:
        find(value)
        return value

    def check_used(self, form: str) -> None:
        """Refuse settings that would change nothing.

        Raises:
            InputError: ``attack`` or ``eps`` without ``measure``, or a ``license`` in a form without a model card.
        """
        for name in ("attack", "eps"):
            if name in self.model_fields_set and self.measure is None:
                raise InputError(f"{name} changes nothing without measure; give --measure N, the images to measure on.")
        if "license" in self.model_fields_set and form != "huggingface":
            raise InputError(f"license is for the model card of --to huggingface; --to {form} has none.")


def parse_settings(values: Mapping[str, Any], function: str) -> ExportSettings:
    """Read settings from keyword arguments.

    Args:
        values: the settings.
        function: the function's name, for messages.

    Raises:
        InputError: one line for the first that is wrong.
    """
    for name in values:
        if name not in ExportSettings.model_fields:
            raise InputError(f"{function}() has no setting {name!r}. {nearest(name, ExportSettings.model_fields)}")
    try:
        return ExportSettings(**values)
    except ValidationError as error:
        raise InputError(explain(error, setting_names(ExportSettings))) from error
