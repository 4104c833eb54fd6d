"""What can be set about an evaluation under other words."""

from __future__ import annotations

from typing import Literal, TypedDict

from pydantic import Field, field_validator, model_validator

from apd import attacks
from apd.attacks.threat import EpsText, Norm, parse_eps
from apd.data.settings import Split, Which
from apd.errors import nearest
from apd.evaluation.settings import EvaluationSettings, check_norm, number_or_word
from apd.evaluation.wording.variants import KINDS
from apd.util.section import Section
from apd.util.seed_range import Seed


class WordingSettings(Section):
    """Which words change, how, and which attack is run on the images besides."""

    changes: tuple[str, ...] = Field(
        ("typos", "edits", "templates"), description="typos, edits (searched), synonyms, templates"
    )
    variants: int = Field(5, ge=1, description="wordings per kind of typos and edits")
    distance: int = Field(1, ge=1, description="characters per class name that typos and edits change")
    candidates: int = Field(20, ge=1, description="draws per choice in the search for edits (LEAF's rho)")
    attack: str = Field("pgd-10", description="attack on the images, by name; clean: none")
    eps: EpsText = Field("1/255", description="budget of the attack in [0,1] pixel units, as a fraction or a float")
    norm: Norm = Field("linf", description="linf, l2 or l1")
    seed: Seed = Field(0, description="seed of the words, of the attack and of the images that a limit keeps")
    split: Split = Field("test", description="the images; every choice is made on val")
    classes: Which = Field("all", description="all classes, the first half or the second")
    limit: int | Literal["all"] = Field(200, description="evaluate this many images, drawn by the seed, or all")
    control: bool = Field(True, description="evaluate zero-shot CLIP under the same changes too")
    skip_bad_images: bool = Field(False, description="leave out images that cannot be read, and count them")
    quiet: bool = Field(False, description="no progress on standard error")

    @field_validator("changes", mode="before")
    @classmethod
    def _one_change(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("changes")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in KINDS:
                raise ValueError(f"No kind of change {name!r}. {nearest(name, KINDS)}")
        if not value:
            raise ValueError(f"changes: give at least one of {', '.join(KINDS)}.")
        return tuple(dict.fromkeys(value))

    @field_validator("limit", mode="before")
    @classmethod
    def _number_or_word(cls, value: object) -> object:
        return number_or_word(value, "all")

    @model_validator(mode="after")
    def _can_attack(self) -> WordingSettings:
        parse_eps(self.eps, self.norm)
        if self.attack != "clean":
            check_norm(self.attack, self.norm)
            if isinstance(attacks.find(self.attack), attacks.Targeted | attacks.Transfer | attacks.Universal):
                raise ValueError(
                    f"{self.attack} needs other images, classes or models than those under changed words; choose an attack on "
                    "single images, such as pgd-10, apgd-ce or autoattack"
                )
        return self

    @property
    def attacked(self) -> bool:
        """Whether images are attacked."""
        return self.attack != "clean" and parse_eps(self.eps, self.norm) > 0

    @property
    def evaluation(self) -> EvaluationSettings:
        """The evaluation of one wording."""
        names = ("clean", self.attack) if self.attacked else ("clean",)
        return EvaluationSettings(
            attacks=names, eps=self.eps, norm=self.norm, seed=self.seed, checks=False, control=False
        )


class WordingOptions(TypedDict, total=False):
    """See `WordingSettings`, which has the defaults; a test compares names and types."""

    changes: tuple[str, ...] | str
    variants: int
    distance: int
    candidates: int
    attack: str
    eps: str | float
    norm: Norm
    seed: int
    split: Split
    classes: Which
    limit: int | Literal["all"]
    control: bool
    skip_bad_images: bool
    quiet: bool
