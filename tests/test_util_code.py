"""A hash of code from elsewhere tells what it does, and not where its lines stand."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import apd
from apd.util.code import code_hash

from .test_foreign_code import Means, halves

CODE = """
import help_with_it
from apd.attacks import TrainingAttack

SHARE = 0.5

CONFIG = {"scales": [1.0, 2.0], "names": {"a", "b"}}

def length(eps):
    return SHARE * eps * CONFIG["scales"][0]

class Base(TrainingAttack):
    def __call__(self, objective, x, threat, seeds):
        return threat.project(self.moved(x, threat), x)

class Mine(Base):
    def moved(self, x, threat):
        return x + (lambda: help_with_it.sign(length(threat.eps)))()

def unrelated():
    return 1
"""
HELP = "def sign(number):\n    return number\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def imported(here: Path, code: str = CODE, helper: str = HELP) -> Any:
    """The class as a new process would import it."""
    for name, text in (("my_code", code), ("help_with_it", helper)):
        sys.modules.pop(name, None)
        (here / f"{name}.py").write_text(text)
    return import_module("my_code").Mine


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("return 1\n", "return 2\n", True),
        ("SHARE = 0.5", "SHARE = 0.25", False),
        ("SHARE * eps", "SHARE * eps * 2", False),
        ("[1.0, 2.0]", "[10.0, 2.0]", False),
        ('{"a", "b"}', '{"b", "a"}', True),
        ("self.moved(x, threat), x", "self.moved(x, threat) + 0, x", False),
        ("return number", "return -number", False),
    ],
    ids=["what it does not use", "a number", "a function", "settings", "a set", "a base class", "another module"],
)
def test_what_code_uses_counts_with_it(here: Path, old: str, new: str, same: bool) -> None:
    before = code_hash(imported(here))
    after = code_hash(imported(here, CODE.replace(old, new), HELP.replace(old, new)))
    assert before == code_hash(imported(here)), "the same code has the same hash in every process"
    assert (before == after) is same


def test_outcomes_of_an_attack_whose_helper_was_edited_are_computed_again(here: Path) -> None:
    def accuracy(helper: str) -> float:
        attack = imported(here, CODE.replace("0.5", "200"), helper)
        settings: Any = {"attacks": [attack], "store": here / "kept", "eps": "200/255", "checks": False, "quiet": True}
        return apd.evaluate(Means(), halves(), limit=4, **settings).worst.accuracy

    assert accuracy("def sign(number):\n    return 0 * number\n") == 100.0
    assert accuracy(HELP) < 100.0
