"""The section ``data``: which images, and how many of them.

A new option is one field here, and the code that obeys it: run settings, suites, `Dataset` and the record of a run take it
from this class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from apd.util.section import GrowingSection
from apd.util.seed_range import Seed

if TYPE_CHECKING:
    from apd.data.dataset import Dataset

Shots = Annotated[int, Field(ge=0)] | Literal["all"]
Which = Literal["all", "base", "new"]
Split = Literal["train", "val", "test"]
REST = "rest"
"""As a source of unlabelled images: the training images that are neither shots nor validation images."""

UNLABELLED = ("unlabelled", "unlabelled_limit")
"""Settings about unlabelled images."""


class DataSettings(GrowingSection):
    """Which images, and how many of them."""

    unrecorded: ClassVar[dict[str, Any]] = {
        "unlabelled": None,
        "unlabelled_limit": None,
        "class_names": None,
        "memory_gb": 4.0,
    }

    source: str = Field(description="folder, split file, hub id or built-in data set")
    shots: Shots = Field(16, description="training images per class, or all; 0: unlabelled ones alone")
    seed: Seed | None = Field(None, description="seed of the few-shot draw; null: train.seed")
    templates: tuple[str, ...] | None = Field(
        None, description="sentences with {} for the class name; null: the data set's own"
    )
    classes: Which = Field("all", description="all, or the first (base) or second (new) half")
    columns: tuple[str, str] | None = Field(None, description="image and label column of a table; null: detected")
    skip_bad_images: bool = Field(False, description="continue without images that cannot be read, and count them")
    validation: int | None = Field(None, ge=1, description="validation images per class; null: min(shots, 4)")
    unlabelled: str | None = Field(
        None,
        description="further training images whose labels, if any, are not used: a source, or rest: those that are not shots",
    )
    unlabelled_limit: int | None = Field(
        None, ge=1, description="at most so many unlabelled images, drawn by the seed before classes are divided"
    )
    class_names: str | tuple[str, ...] | None = Field(
        None,
        description="with shots 0: a file with one class name per line, or a list of names; the source then needs no labels, "
        "and all its images are the unlabelled ones",
    )
    memory_gb: float = Field(
        4.0,
        ge=0,
        allow_inf_nan=True,
        description="room for decoded unlabelled images; if they need more they are decoded again in every epoch, with the "
        "same result",
    )

    @model_validator(mode="after")
    def _has_images(self) -> DataSettings:
        self.check_unlabelled()
        return self

    def check_unlabelled(self) -> None:
        """Check that there are images to train on.

        Raises:
            ValueError: no images, classes and unlabelled images named twice, an empty name, a limit of nothing.
        """
        if not self.source.strip():
            raise ValueError(f"data.source={self.source!r} names no images: name a source (this folder: .)")
        if self.unlabelled is not None and not self.unlabelled.strip():
            raise ValueError(
                f"data.unlabelled={self.unlabelled!r} names no images: name a source (--unlabelled DATA) or rest (this folder: .)"
            )
        if self.unlabelled_limit is not None and self.unlabelled is None and self.class_names is None:
            raise ValueError(
                f"data.unlabelled_limit={self.unlabelled_limit} has no effect without data.unlabelled; set both or neither"
            )
        if self.shots == 0 and self.unlabelled is None and self.class_names is None:
            raise ValueError(
                "data.shots=0 leaves no images to train on: ask for 1 or more, or name images without labels in data.unlabelled "
                "(--unlabelled DATA), or their classes in data.class_names (--classes FILE)"
            )
        if self.class_names is not None and self.shots != 0:
            raise ValueError(
                f"data.class_names names the classes of images without labels, of which no shots can be drawn: set "
                f"data.shots=0, got {self.shots}, or leave out data.class_names"
            )
        if self.class_names is not None and self.unlabelled is not None:
            raise ValueError(
                f"with data.class_names the unlabelled images are those of data.source={self.source}: leave out "
                f"data.unlabelled={self.unlabelled}"
            )

    def for_evaluation(self) -> DataSettings:
        """Return the section to evaluate with: all classes, and without the unlabelled images, which may be gone."""
        return self.labelled().model_copy(update={"classes": "all"})

    def labelled(self) -> DataSettings:
        """Return the section without the unlabelled images, and without columns that are theirs alone."""
        from apd.data.load import own_columns

        return self.model_copy(update={"columns": own_columns(self), **dict.fromkeys(UNLABELLED)})

    def load(self, seed: int = 0) -> Dataset:
        """Read the data set; ``seed`` draws the shots if this section names no seed of its own.

        Raises:
            InputError: see `apd.load_data`.
        """
        # Not at the top: a Dataset carries its section, so its module is imported after this one.
        from apd.data.load import load_section

        return load_section(self if self.seed is not None else self.model_copy(update={"seed": seed}))
