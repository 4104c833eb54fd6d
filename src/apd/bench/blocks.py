"""The parts of a suite: data sets, blocks that combine them with methods, and a second stage."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, NonNegativeInt, model_validator

from apd.attacks.threat import EpsText, Norm
from apd.data.settings import DataSettings, Shots
from apd.util.section import Section
from apd.util.seed_range import Seed


def _listed(value: object) -> object:
    """Turn a single name into a list of one."""
    return (value,) if isinstance(value, str | int | float) else value


ELSEWHERE = {
    "train": {"seed": "a block has seeds", "device": "apd bench computes on GPUs where there are any, unless --gpus 0"},
    "data": {
        "seed": "a block has seeds",
        "classes": "the protocol of a block chooses them",
        "class_names": "a suite evaluates on labelled images; name their data set, and the others as unlabelled",
    },
}
"""Settings of a run that a suite sets itself, by section, and how."""
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
SomeNames = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_listed)]


class DataEntry(DataSettings):
    """A data set: where it is, and what training on it is like for all methods.

    ``source`` may be a path relative to the root; ``shots`` hold where a block names none.
    """

    model: str | None = Field(None, description="CLIP model of the runs that train on it, instead of the suite's")
    eps: EpsText = Field("1/255", description="budget of training and attacks, in [0,1] pixel units")
    norm: Norm = Field("linf", description="norm of that budget: linf, l2 or l1")
    train: dict[str, Any] = Field({}, description="settings of the section train, over the suite's; for all methods")

    @model_validator(mode="after")
    def _set_elsewhere(self) -> DataEntry:
        for name, hint in ELSEWHERE["data"].items():
            if name in self.model_fields_set:
                raise ValueError(f"{name} has no effect in an entry of data: {hint}")
        return self


class Block(Section):
    """A protocol on some data sets with some methods: every combination is a run."""

    protocol: str = Field(description="a name of `apd.bench.protocols.PROTOCOLS`")
    data: SomeNames
    methods: SomeNames
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), BeforeValidator(_listed)] = (0,)
    shots: Annotated[tuple[Shots, ...], Field(min_length=1), BeforeValidator(_listed)] | None = Field(
        None, description="one or several (a curve); null: the data set's"
    )
    unlabelled: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), BeforeValidator(_listed)] | None = Field(
        None,
        description="few-shot: numbers of unlabelled images (a curve), drawn from the data set's unlabelled source, or else from "
        "its training images that are not shots; null: as the methods say",
    )
    to: Names = Field((), description="cross-dataset and domain-shift: the data sets to evaluate on")
    eps: Annotated[tuple[EpsText, ...], BeforeValidator(_listed)] = Field((), description="eps-curve: the budgets")
    corruptions: Names = Field((), description="corruption: which")
    severity: int = Field(3, ge=1, le=5, description="corruption: how strong")
    attacks: SomeNames | None = Field(None, description="instead of the suite's")
    limit: int | None = Field(None, ge=1, description="instead of the suite's")


class Final(Section):
    """A second stage: stronger attacks on the best methods of every table of these protocols."""

    attacks: SomeNames = ("autoattack",)
    limit: int = Field(100, ge=1, description="test images")
    best: int = Field(2, ge=1, description="how many methods, by the protocol's main figure in the first stage")
    protocols: SomeNames = ("few-shot",)
