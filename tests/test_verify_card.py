"""A model card is verified by the facts it states: other words are no finding, another fact is one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apd.evaluation.card_text import LONGEST_LINE
from apd.evaluation.verify_card import check_card
from apd.models import DualEncoder
from apd.models.prompts import Prompts
from apd.runs.config import load_config
from apd.runs.folder import Run

from .refusals import refused
from .test_card import HOSTILE, evaluated

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


def test_a_card_that_writes_eps_of_l2_in_255ths_is_true(finished: Run) -> None:
    """Earlier versions wrote so, and finished runs of theirs stay as they are."""
    file = finished.save_result(evaluated(norm="l2", eps=0.2, eps_text="51/255"))
    card = finished.path / "README.md"
    now = card.read_text()
    assert check_card(finished) is None
    card.write_text(now.replace("| 0.2 |", "| 51/255 |").replace("eps 0.2 of", "eps 51/255 of"))
    assert check_card(finished) is None and file.is_file()
    card.write_text(now.replace("| 0.2 |", "| 0.4 |").replace("eps 0.2 of", "eps 0.4 of"))
    assert check_card(finished) is not None


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


DESCRIBED = """
<!--
| imagenet | 99.9 % |
-->
# About these prompts

Made for <b>traffic signs</b> on a rainy day; eps < 0.5 is small, and `x <y> 1`. See <https://example.org/a> and [2].
- learning rate 0.003, robust training; torch 2.13

1. `apd evaluate RUN`

| author | somebody |
|---|---|
| contact | <somebody@example.org> |

```bash
apd evaluate RUN --eps 16/255 --limit 5000 | tee log  # takes a while
```

```python
print(f"{10 % 3} {0.5:.1%}")
```

    @article{somebody}
"""


def described(card: str) -> str:
    """A card with a description of somebody's own."""
    return f"{card}\n{DESCRIBED}"


@pytest.mark.parametrize("wording", [str, reworded, as_at_first, described])
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
    "title": lambda card: re.sub("^# .*", "# Withstands 97.5 % of AutoAttack", card, flags=re.MULTILINE),
    "title of a section": lambda card: card.replace("## Circumstances", "## Circumstances at 16/255"),
    "results in a comment": lambda card: card.replace("## All", "<!--\n## All").replace(
        "\nThe whole", "\n-->\nThe whole"
    ),
    "text after a comment": lambda card: card + "\n<!-- a --!> 97.5 % of all <!-- b\n-->\n",
    "rows outside of any table": lambda card: re.sub(r"\| data \|.*\n.*\n", "", card),
    "HTML": lambda card: card + "\n<table><tr><td>imagenet</td><td>autoattack</td><td>81.3</td></tr></table>\n",
    "HTML among code": lambda card: card + "\nSee `a` <details> `b`\n",
    "HTML over lines of code": lambda card: card + "\n`\n<div hidden\n`\n",
    "block": lambda card: card + "\n```\nimagenet, autoattack: 81.3 %\n```\n",
    "block without an end": lambda card: card + "\n~~~\nimagenet, autoattack: 81.3 %\n",
    "block of a table": lambda card: card + "\n```text\n| autoattack | 81.3 |\n```\n",
    "block of code": lambda card: card.replace("```python\n", "```python\n# robust accuracy: 81.3\n"),
    "end of a line of code": lambda card: card + "\n```bash\necho autoattack 81.3 %\n```\n",
    "comment among the settings": lambda card: card.replace("```yaml\n", "```yaml\n# 81.3 % under autoattack\n"),
    "label": lambda card: card + "\n| what | |\n|---|---|\n| 99.9 % under autoattack | yes |\n",
    "bare number in a label": lambda card: card + "\n| what | |\n|---|---|\n| robust 98.7 | yes |\n",
    "head of a table": lambda card: card + "\n| 98.7 | yes |\n|---|---|\n| sure | sure |\n",
    "table of one column": lambda card: card + "\n| robust |\n|---|\n| 98.7 |\n",
    "accuracy of one": lambda card: card + "\nIt has a robust accuracy of 0.987.\n",
    "accuracy before the word": lambda card: card + "\nIt has 0.987 robust accuracy.\n",
    "accuracy without a sign": lambda card: card + "\nAutoAttack: 81.3\n",
    "percent in bold": lambda card: card + "\nIt withstands **97.5** % of all.\n",
    "percent over two lines": lambda card: card + "\nIt withstands 97.5\npercent.\n",
    "wide percent": lambda card: card + "\nIt withstands 97.5\uff05.\n",
    "thousands of images": lambda card: card + "\nIt was tested on 60,000 images.\n",
    "budget with spaces": lambda card: card + "\nIt stands at 16 / 255.\n",
    "text for the hub": lambda card: card.replace("tags:", "summary: withstands 97.5 %\ntags:"),
    "figure for the hub as text": lambda card: card.replace("tags:", "value: '98.5'\ntags:"),
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


TRUE = {
    "accuracy of one": "The clean accuracy is 0.80, and the robust accuracy 0.4000 (pgd-5).",
    "percent": "It withstands 40 % of PGD-5 (30.0 to 50.0 %) on 50 images at 4/255.",
    "title": "## Robust: 40.0 %",
    "row": "| robust | 40.0 |",
    "block": "```\npgd-5: 40.0 %\n```",
}


@pytest.mark.parametrize("kind", TRUE)
def test_a_figure_of_the_run_may_stand_anywhere(kind: str, run: Run) -> None:
    (run.path / "README.md").write_text(f"{(run.path / 'README.md').read_text()}\n{TRUE[kind]}\n")
    assert check_card(run) is None


def test_a_card_with_hostile_names_is_true(tmp_path: Path, clip: DualEncoder, manifest: dict[str, Any]) -> None:
    config = load_config(flags={"data.source": "data|<b>```\n# 9 %", "method.name": "advvlp", "model": "a`b"})
    model = {**manifest["model"], "source": "a`b<u> <!--"}
    run = Run.create(tmp_path / "run", config, {**manifest, "model": model, "class_names": ["<!-- 99 %", *HOSTILE]})
    run.save_prompts(Prompts.initial(config.method.settings.prompts, clip, n_classes=len(HOSTILE) + 1).state_dict())
    run.finish({"val_clean": 90.0, "warnings": "1.5 % " * 2000})
    run.save_result(evaluated(data="data|<b>```"))
    assert max(map(len, (run.path / "README.md").read_text().splitlines())) > LONGEST_LINE
    assert check_card(run) is None


LONG: dict[str, str] = {
    "ends in a backslash": "a" * 9999 + "\\",
    "digits": "1" * 10**4,
    "numbers": "1.,1 " * 2000,
    "parts of a number": "1.1" * 3333,
    "numbers with signs": "1,,1" * 2500,
    "numbers and words": "1 a " * 2500,
    "ticks": "".join("`" * (n % 140) + " " for n in range(140)),
    "tags": "<b" * 5000,
    "comments": "<!---->" * 1400,
    "bars": "|" * 10**4,
    "escapes": "\\|" * 5000,
    "spaces": "1" + " " * 9999,
    "the number of a character": f"&#{'9' * 9000};",
}


@pytest.mark.parametrize("kind", LONG)
def test_long_cards_take_no_time(kind: str, run: Run) -> None:
    card = run.path / "README.md"
    card.write_text(f"{card.read_text()}\n" + f"{LONG[kind]}\n" * 20)
    check_card(run)


@pytest.mark.parametrize("made", ["1" * 10_001, "a\n" * 600_000])
def test_cards_and_lines_have_a_limit(made: str, run: Run) -> None:
    (run.path / "README.md").write_text(made)
    with refused("README.md"):
        check_card(run)


def test_results_without_sense_are_refused(run: Run) -> None:
    (file, *_) = run.results.glob("summary-*")
    for value in (10**400, "a", None):
        file.write_text(json.dumps({**evaluated(), "clean": value}))
        with refused(file.name):
            check_card(run)
