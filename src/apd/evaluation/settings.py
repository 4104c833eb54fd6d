"""What can be set about an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Literal

from pydantic import Field, field_validator, model_validator

from apd import attacks
from apd.attacks.autoattack import BLACK_BOX
from apd.attacks.targeted import Targeted
from apd.attacks.threat import EpsText, Norm, ThreatModel, parse_eps
from apd.attacks.transfer import Transfer
from apd.attacks.universal import Universal
from apd.data.corruptions import parse_corruption
from apd.data.settings import Split, Which
from apd.errors import InputError
from apd.util.section import Section
from apd.util.seed_range import Seed


def number_or_word(value: object, *words: str) -> object:
    """Check a limit: a number of images from 1, also as text, or one of these words.

    >>> number_or_word("20", "all"), number_or_word("all", "all")
    (20, 'all')
    """
    is_number = isinstance(value, Integral) or (isinstance(value, str) and value.isdecimal())
    number = int(str(value)) if is_number and not isinstance(value, bool) else value
    if number not in words and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
        raise ValueError(f"limit: give a number of images from 1, or {' or '.join(words)} (got {value!r}).")
    return number


TEACHER = "transfer:teacher"
"""The attack on the model that taught a run, by the name that a user gives it."""


def check_norm(attack: str, norm: Norm) -> None:
    """Check that an attack, by its name, attacks within this norm.

    Raises:
        ValueError: it does not.
    """
    norms = attacks.find(attack).norms
    if norm not in norms:
        raise ValueError(f"{attack} attacks within {' and '.join(norms)}, not {norm}; use --norm {norms[0]}, or fmn")


def find_within(attack: str, norm: Norm) -> attacks.EvaluationAttack:
    """Find an attack by its name that is run on a few images within the norm of a run, outside of an evaluation.

    Raises:
        InputError: no such attack, one that needs other models or images, or one within other norms, whose images would not be
            those of this threat model.
    """
    found = attacks.find(attack)
    if isinstance(found, Transfer | Universal) or (isinstance(found, Targeted) and not found.target.isdecimal()):
        raise InputError(
            f"{attack} is for apd evaluate, which gives it what it needs; choose another attack, such as pgd-100."
        )
    if norm not in found.norms:
        within = " and ".join(found.norms)
        raise InputError(
            f"{attack} attacks within {within}, but the run's norm is {norm}; choose another attack, such as fmn."
        )
    return found


def refuse_teacher(names: Iterable[str]) -> None:
    """Refuse an attack from a run's teacher where no run is evaluated that says who that is.

    Raises:
        InputError: it is among these attacks.
    """
    if TEACHER in names:
        raise InputError(
            f"{TEACHER} is for apd evaluate RUN; here name the model that images are made on: transfer:MODEL."
        )


class EvaluationSettings(Section):
    """Which attacks, how far, on which images; every reported attack runs in float32."""

    attacks: tuple[str, ...] = Field(
        ("clean", "apgd-ce+dlr"),
        description="clean (always included), pgd-N, apgd-ce+dlr, autoattack, strong and others: apd list attacks",
    )
    eps: EpsText = Field("1/255", description="budget of the attacks in [0,1] pixel units, as a fraction or a float")
    norm: Norm = Field("linf", description="linf, l2 or l1")
    seed: Seed = Field(0, description="seed of the attacks' random starts and of the images that a limit keeps")
    split: Split = Field("test", description="the images; every choice is made on val")
    classes: Which = Field("all", description="all classes, the first half or the second")
    corruption: str | None = Field(None, description="corrupts images before any attack, such as fog:3; null: none")
    limit: int | Literal["auto", "all"] = Field(
        "auto",
        description="evaluate this many images, drawn by the seed, or all; auto: as many as take about four minutes on "
        "this machine",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="images at a time; null: as many, up to 128, as one part of an attack finishes within a minute. "
        "APGD and AutoAttack draw their random numbers per batch",
    )
    control: bool = Field(True, description="attack zero-shot CLIP on the same images too")
    checks: bool = Field(True, description="run the health checks, on the first images")
    skip_bad_images: bool = Field(False, description="leave out images that cannot be read, and count them")
    quiet: bool = Field(False, description="no progress on standard error")

    @field_validator("attacks", mode="before")
    @classmethod
    def _one_attack(cls, value: object) -> object:
        listed = value if isinstance(value, list | tuple) else (value,)
        named: dict[str, object] = {}
        for each in listed:
            name = attacks.name_of(each)
            if not isinstance(each, str) and not attacks.alike(named.setdefault(name, each), each):
                raise ValueError(f"two attacks are called {name}; give them different names or settings")
        return tuple(attacks.name_of(each) for each in listed)

    @field_validator("attacks")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name != "clean":
                attacks.find(name)
        return tuple(dict.fromkeys(value))

    @field_validator("limit", mode="before")
    @classmethod
    def _number_or_word(cls, value: object) -> object:
        return "all" if value is None else number_or_word(value, "all", "auto")

    @field_validator("corruption")
    @classmethod
    def _known_corruption(cls, value: str | None) -> str | None:
        if value is not None:
            parse_corruption(value)
        return value

    @model_validator(mode="after")
    def _eps_fits_norm(self) -> EvaluationSettings:
        parse_eps(self.eps, self.norm)
        for name in self.adversarial:
            check_norm(name, self.norm)
        return self

    @property
    def threat(self) -> ThreatModel:
        """The threat model of the attacks."""
        return ThreatModel(parse_eps(self.eps, self.norm), self.norm)

    @property
    def adversarial(self) -> tuple[str, ...]:
        """The attacks that change images."""
        return tuple(name for name in self.attacks if name != "clean")

    @property
    def needs_gradient(self) -> bool:
        """Whether an attack asks the model for gradients."""
        return any(attacks.find(name).needs_gradient for name in self.adversarial)

    def without_gradient(self) -> EvaluationSettings:
        """Return the settings with those attacks that ask for no gradients; Square where there are none."""
        kept = tuple(name for name in self.attacks if name == "clean" or not attacks.find(name).needs_gradient)
        black_box = () if set(kept) - {"clean"} else (BLACK_BOX,)
        return self.model_copy(update={"attacks": kept + black_box})
