"""A model card is verified by the facts it states: other words are no finding, another fact is one."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from apd.evaluation.verify_card import check_card
from apd.runs.folder import Run

from .test_card import evaluated

FAILED = {"name": "huge eps", "passed": False, "value": 0.4, "message": "40.0% of images stand"}


@pytest.fixture
def run(finished: Run) -> Run:
    """A run with two evaluations, one of which has two attacks and a failed health check."""
    finished.save_result(evaluated(eps=4 / 255, eps_text="4/255"))
    entries = {"pgd-5": (40.0, 30.0, 50.0), "autoattack": (35.5, 24.5, 47.5)}
    attacks = {name: {"accuracy": a, "interval": [low, high]} for name, (a, low, high) in entries.items()}
    worst = {"accuracy": 34.44, "interval": [23.4, 46.6]}
    base = {**evaluated()["undefended"], "attacks": {n: {"accuracy": 1.0, "interval": [0, 5]} for n in attacks}}
    finished.save_result(evaluated(n=60, attacks=attacks, worst=worst, checks=[FAILED], undefended=base))
    return finished


def reworded(card: str) -> str:
    """A card as another version might write it: other words, titles, labels and order, the same facts."""
    words = {
        "Accuracy in percent on": "Percent of right answers,",
        "attacks change every image": "each image may change",
        "this classifier": "robust prompts",
        "attacked by ": "under attack: ",
        "Health checks: ": "Signs of a weak attack: ",
        "## Circumstances": "## How it was made",
        "| accuracy % | 95 % interval |": "| accuracy in percent | interval (95 %) |",
        "| weights sha256 |": "| hash of the weights |",
        "not calibrated (apd calibrate RUN)": "as they are",
        "tags:": "license: cc-by-4.0\ntags:",
    }
    assert all(word in card for word in words)
    for old, new in words.items():
        card = card.replace(old, new)
    head, opening, about, table = card.split("\n## ")
    about = re.sub(r"\| versions .*\n", "", about)
    return "\n## ".join([head, table, about, opening]) + "\nTrained on a rainy day in 2025 by 3 people.\n"


def as_at_first(card: str) -> str:
    """A card without the opening table, and without the column on reliability."""
    start, end = card.index("## How robust it is"), card.index("```python")
    lines = (card[:start] + card[end:]).splitlines()
    return "\n".join(line.rstrip("|").rpartition("|")[0] + "|" if line.count("|") == 10 else line for line in lines)


@pytest.mark.parametrize("wording", [str, reworded, as_at_first])
def test_a_card_in_other_words_is_true(wording: Callable[[str], str], run: Run) -> None:
    card = run.path / "README.md"
    card.write_text(wording(card.read_text()))
    assert check_card(run) is None


def swapped(card: str, one: str, other: str) -> str:
    return card.replace(one, "\0").replace(other, one).replace("\0", other)


FORGED: dict[str, Callable[[str], str]] = {
    "columns swapped": lambda card: swapped(card, "this classifier", "zero-shot CLIP"),
    "attack and clean swapped at the top": lambda card: swapped(card, "| clean | **", "| attacked by pgd-5 | **"),
    "attack and clean swapped below": lambda card: swapped(card, "| clean | 8", "| pgd-5 | 4"),
    "attacks swapped": lambda card: swapped(card, "| 60 of 90 | pgd-5", "| 60 of 90 | autoattack"),
    "row left out": lambda card: re.sub(r"\| colours .* autoattack .*\n", "", card),
    "all rows left out": lambda card: card.split("## All evaluations")[0],
    "figure at the top": lambda card: card.replace("**34.4", "**94.4"),
    "figure of another evaluation": lambda card: card.replace("**35.5 (24.5 to 47.5)**", "**40.0 (30.0 to 50.0)**"),
    "interval": lambda card: card.replace("24.5 to 47.5", "34.5 to 37.5"),
    "zero-shot CLIP": lambda card: card.replace("| 1.0 (0.0 to 5.0) |", "| 0.0 (0.0 to 5.0) |"),
    "row without pipes at its ends": lambda card: (
        card + "\ncolours | linf | 1/255 | 0 | 50 | square | 99.0 | 98 to 100\n"
    ),
    "row of other data": lambda card: card.replace("| colours | linf", "| imagenet | linf"),
    "eps of a row": lambda card: card.replace("| linf | 1/255 |", "| linf | 8/255 |"),
    "eps in the text": lambda card: card.replace("linf eps 1/255", "linf eps 16/255"),
    "eps of another evaluation in the text": lambda card: card.replace("linf eps 1/255", "linf eps 4/255"),
    "images in the text": lambda card: card.replace("on 60 of 90 test images", "on 60000 test images"),
    "percent in the text": lambda card: card + "\nIt withstands 97.5 % of all attacks.\n",
    "verdict": lambda card: card.replace("**Reliable: no", "**Reliable: yes"),
    "verdict in a row": lambda card: card.replace("47.5 | no |", "47.5 | yes |"),
    "failed check not named": lambda card: re.sub(r"- huge eps.*", "", card).replace("(huge eps)", ""),
    "settings": lambda card: re.sub(r"  epochs: \d+", "  epochs: 1234", card),
    "training": lambda card: re.sub(r"\| training \| \d+ epochs", "| training | 1234 epochs", card),
    "method": lambda card: re.sub(r"\| method \| [\w-]+", "| method | coop", card),
    "method among the tags": lambda card: re.sub(r"(- adversarial-robustness\n- ).*", r"\1coop", card),
    "order of the classes": lambda card: re.sub(r"(\| classes \| )(\w+), (\w+)", r"\1\3, \2", card),
    "hash": lambda card: re.sub(r"(\| prompts sha256 \| )\w", r"\1f0", card),
    "base model": lambda card: card.replace("tags:", "base_model: openai/clip-vit-large-patch14\ntags:"),
    "figure for the hub": lambda card: card.replace("tags:", "model-index:\n- accuracy: 98.5\ntags:"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_another_fact_is_noticed(kind: str, run: Run) -> None:
    card = run.path / "README.md"
    before = card.read_text()
    forged = FORGED[kind](before)
    assert forged != before
    card.write_text(forged)
    assert check_card(run) is not None
