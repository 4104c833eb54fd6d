"""What can be set about a certification."""

from __future__ import annotations

from math import floor, log
from typing import Literal, TypedDict

from pydantic import Field, field_validator, model_validator

from apd.data.settings import Split, Which
from apd.evaluation.certified.smoothing import Smoothing
from apd.evaluation.settings import number_or_word
from apd.util.section import Section
from apd.util.seed_range import Seed


class CertifySettings(Section):
    """How a classifier is smoothed, and on which images."""

    sigma: float = Field(0.25, description="standard deviation of the noise, in [0,1] pixel units")
    n0: int = Field(100, description="draws of noise per image that choose the class")
    n: int = Field(1000, description="draws of noise per image that bound its probability")
    alpha: float = Field(0.001, description="probability that a certificate is wrong")
    seed: Seed = Field(0, description="seed of the noise and of the images that a limit keeps")
    split: Split = Field("test", description="the images; every choice is made on val")
    classes: Which = Field("all", description="all classes, the first half or the second")
    limit: int | Literal["all"] = Field(100, description="certify this many images, drawn by the seed, or all")
    radii: tuple[float, ...] | None = Field(
        None, description="radii of the table, in [0,1] pixel units; null: multiples of sigma/2"
    )
    attack: bool = Field(False, description="attack the smoothed classifier at these radii too, which is slow")
    control: bool = Field(True, description="certify zero-shot CLIP on the same images too")
    skip_bad_images: bool = Field(False, description="leave out images that cannot be read, and count them")
    quiet: bool = Field(False, description="no progress on standard error")

    @field_validator("limit", mode="before")
    @classmethod
    def _number_or_word(cls, value: object) -> object:
        return number_or_word(value, "all")

    @field_validator("radii")
    @classmethod
    def _not_negative(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and (not value or not all(0 <= radius < float("inf") for radius in value)):
            raise ValueError(f"radii: give distances from 0 in [0,1] pixel units, such as 0.25 (got {value!r}).")
        return None if value is None else tuple(sorted({0.0, *value}))

    @model_validator(mode="after")
    def _can_smooth(self) -> CertifySettings:
        if self.smoothing.largest_radius <= 0:
            needed = floor(log(self.alpha) / log(0.5)) + 1
            raise ValueError(
                f"n={self.n} draws can prove nothing at alpha={self.alpha:g}; from n={needed} on they can."
            )
        return self

    @property
    def smoothing(self) -> Smoothing:
        """The noise and the numbers of draws."""
        return Smoothing(self.sigma, self.n0, self.n, self.alpha)

    @property
    def table_radii(self) -> tuple[float, ...]:
        """The radii to report: 0 and those asked for, else multiples of sigma/2 that could be certified."""
        if self.radii is not None:
            return self.radii
        step, largest = self.sigma / 2, self.smoothing.largest_radius
        return tuple(step * number for number in range(int(largest / step) + 1))


class CertifyOptions(TypedDict, total=False):
    """See `CertifySettings`, which has the defaults; a test compares names and types."""

    sigma: float
    n0: int
    n: int
    alpha: float
    seed: int
    split: Split
    classes: Which
    limit: int | Literal["all"]
    radii: tuple[float, ...] | None
    attack: bool
    control: bool
    skip_bad_images: bool
    quiet: bool
