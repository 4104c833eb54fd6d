"""What goes in and comes out over HTTP, as OpenAPI describes it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from apd.serve.body import FIELD
from apd.serve.settings import ServeSettings


class ImageResult(BaseModel):
    """The answer for one image."""

    cls: str | None = Field(alias="class", description="Most probable class; null where the server abstains.")
    probability: float = Field(ge=0, le=1, description="Of the most probable class.")
    probabilities: dict[str, float] = Field(description="Of every class; they sum to 1.")
    abstained: bool | None = Field(
        default=None, description="Only with a threshold to abstain below: whether the probability is under it."
    )


class Answer(BaseModel):
    """The answers for the images of a request, in their order."""

    results: list[ImageResult]


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str = Field(description="A sentence that says what is wrong and what to do.")


class Status(BaseModel):
    """How the server is."""

    status: str


class CalibrationInfo(BaseModel):
    """Temperature scaling on labelled images (Guo et al. 2017)."""

    temperature: float
    images: int = Field(description="Images that the temperature was fitted on.")
    ece_before: float = Field(description="Expected calibration error on these at temperature 1, from 0 to 1.")
    ece_after: float
    split: str = Field(description="Which images of the data these were: val, test or train.")


class Limits(BaseModel):
    """What a request may hold."""

    images: int
    image_mb: float
    image_megapixels: float
    seconds: float


class Description(BaseModel):
    """What is served."""

    version: str
    classes: list[str]
    calibration: CalibrationInfo | None = Field(description="null: the probabilities are not calibrated.")
    abstain_below: float | None
    image_size: int = Field(description="Side of the square, in pixels, that images are resized to.")
    limits: Limits


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that mean trouble."""
    said = {
        400: "The body is damaged.",
        408: "The body comes in too slowly.",
        413: "The body, an image file or an image is too large.",
        415: "The body is not multipart/form-data.",
        422: "There is no image, there are too many, or one cannot be read.",
        500: "The server failed.",
        503: "The server is busy or stopping; try again.",
    }
    return {status: {"model": Problem, "description": said[status]} for status in statuses}


def request_body(settings: ServeSettings) -> dict[str, Any]:
    """The body of a request to classify."""
    images = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "maxItems": settings.max_images,
        "description": f"Image files, each of {settings.max_image_mb:g} MB at most.",
    }
    form = {"type": "object", "required": [FIELD], "additionalProperties": False, "properties": {FIELD: images}}
    kinds = "image/jpeg, image/png, image/webp, image/gif"
    content = {"multipart/form-data": {"schema": form, "encoding": {FIELD: {"contentType": kinds}}}}
    return {"requestBody": {"required": True, "content": content}}
