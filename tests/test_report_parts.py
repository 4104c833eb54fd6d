"""The parts of `apd report`'s page by themselves: which images, how they fit, names, and charts."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from apd.attacks.threat import format_eps
from apd.evaluation.stored import Outcomes
from apd.report import build
from apd.report.charts import Line, line_chart, round_ticks, spaced
from apd.report.views import _evaluate_again, fragile
from apd.report.wall import Gallery, choose
from apd.report.words import attack_words, strength, threat_words, unharmed
from apd.util.files import names_of


def outcomes(right: dict[str, str], labels: tuple[int, ...] = (0,) * 6) -> Outcomes:
    """Outcomes in which a 1 is a right answer, for ids that are not in order."""
    n = len(labels)
    predictions = {
        name: tuple(label if mark == "1" else 1 - label for mark, label in zip(marks, labels, strict=True))
        for name, marks in right.items()
    }
    return Outcomes(tuple(f"{9 - i}" for i in range(n)), ("p",) * n, labels, ("a", "b"), predictions, undefended=None)


def test_images_are_chosen_in_the_order_of_their_ids() -> None:
    found = choose(outcomes({"clean": "111110", "pgd-1": "101100"}), "pgd-1", each=2)
    assert found == [(3, True), (2, True), (4, False), (1, False)]


def test_images_are_of_each_class_in_turn() -> None:
    found = choose(outcomes({"clean": "111111", "pgd-1": "111110"}, (0, 0, 1, 1, 1, 0)), "pgd-1", each=4)
    assert found == [(1, True), (4, True), (0, True), (3, True), (5, False)]


def test_images_fit_the_page() -> None:
    gallery = Gallery()
    names = [gallery.add(torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(i))) for i in range(30)]
    found = gallery.encode(300_000)
    assert list(found) == names and sum(map(len, found.values())) <= 300_000
    assert max(map(len, gallery.encode().values())) > max(map(len, found.values()))


def test_folders_are_named_by_what_tells_them_apart() -> None:
    assert names_of([Path("/r/apd")]) == ["apd"]
    assert names_of([Path("/r/a/apd"), Path("/r/b/apd")]) == ["a/apd", "b/apd"]


def evaluated(*attacks: str) -> dict[str, Any]:
    scores = {name: {"runs": (name,)} for name in attacks}
    return {"attacks": scores, "image_size": 32, "eps": 1 / 255, "eps_text": "1/255", "norm": "linf"}


def test_words_say_what_an_attack_knows_and_may_change() -> None:
    white, black, mixed = (
        attack_words(evaluated(*names)) for names in (("pgd-5",), ("square", "transfer:a"), ("pgd-5", "square"))
    )
    assert "white-box" in white and "black-box" not in white
    assert "white-box" not in black and "black-box" in black
    assert "white-box" in mixed and "but for square, " in mixed
    patch, both, plain = (evaluated(*names) for names in (("patch-5",), ("pgd-5", "patch-5:center"), ("pgd-5",)))
    assert "5 %" in threat_words(patch) and "1/255" not in threat_words(patch) + strength(patch)
    assert "1/255" in threat_words(both) and "5 %" in threat_words(both)
    assert "square" not in threat_words(plain) + strength(plain)
    assert "square" not in threat_words(evaluated("patch-ours"))


def accuracies(**classes: tuple[float, float]) -> list[dict[str, Any]]:
    return [{"class": name, "clean": clean, "worst": worst} for name, (clean, worst) in classes.items()]


def test_a_class_that_is_never_right_is_not_fragile() -> None:
    rows = accuracies(never=(0, 0), firm=(80, 80), falls=(100, 0), small=(20, 0), half=(50, 25), low=(10, 8))
    assert [row["class"] for row in fragile(rows)] == ["falls", "small", "half", "low"]
    assert unharmed(rows) == "1 class has nothing to lose: all its images are wrong even without an attack."


def test_classes_that_lose_nothing_are_said_to() -> None:
    assert unharmed(accuracies(a=(50, 50), b=(100, 100))) == "No class loses accuracy under attack."
    assert unharmed(accuracies(a=(0, 0), b=(0, 0))) == "No image of any class is right even without an attack."
    assert unharmed(accuracies(a=(50, 25), b=(100, 100))) == ""


def test_points_are_drawn_in_proportion() -> None:
    line = Line("x", "own", [(0, 100.0), (1, 50.0), (4, 0.0)], ["a", "b", "c"])
    drawn = line_chart("t", "s", [line], ("x", "y"), percent=True)
    first, second, last = drawn.lines[0].marks
    assert (first.x, first.y, last.x, last.y) == (drawn.left, drawn.top, drawn.right, drawn.bottom)
    assert second.x - first.x == pytest.approx((last.x - first.x) / 4, abs=0.1)
    assert second.y == pytest.approx((first.y + last.y) / 2, abs=0.1)


def test_ticks_are_not_written_over_each_other() -> None:
    ticks = [(0, "a"), (40, "b"), (60, "c"), (100, "d"), (160, "e"), (200, "f")]
    assert [text for _, text in spaced(ticks, 50)] == ["a", "", "c", "", "", "f"]
    assert spaced([(0, "a")]) == ((0, "a"),)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 3.79), (0, 20), (-0.3, 0.2), (0, 1e-4), (0, 0)])
def test_ticks_cover_the_range(low: float, high: float) -> None:
    ticks = round_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 8


@pytest.mark.parametrize(
    ("norm", "eps", "written"), [("linf", 1.75 / 255, "1.75/255"), ("l2", 20 / 255, repr(20 / 255))]
)
def test_the_command_that_evaluates_again_has_the_very_budget(norm: str, eps: float, written: str) -> None:
    summary = {"attacks": {"pgd-1": {}}, "eps": eps, "eps_text": format_eps(eps, norm), "norm": norm, "seed": 0}
    summary |= {"split": "test", "classes": "all", "n": 2, "skipped_images": []}
    facts = SimpleNamespace(summary=summary, folder=Path("run"), own_data=True)
    assert f"--eps {written} --norm {norm} " in _evaluate_again(facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "skipped", "limit"), [(11, 1, 12), (11, 0, 11), (500, 2, 100)])
def test_a_curve_skips_what_its_evaluation_skipped(
    monkeypatch: pytest.MonkeyPatch, n: int, skipped: int, limit: int
) -> None:
    asked: dict[str, Any] = {}

    def evaluate(*_: object, **how: Any) -> None:
        asked.update(how)
        raise StopIteration

    monkeypatch.setattr(build, "evaluate", evaluate)
    summary = {"norm": "linf", "seed": 0, "split": "test", "classes": "all", "eps": 0.1, "n": n}
    facts = SimpleNamespace(summary={**summary, "skipped_images": ["x"] * skipped}, run=SimpleNamespace(results=None))
    with pytest.raises(StopIteration):
        build._curve(facts, SimpleNamespace(classifier=None, data=None))  # type: ignore[arg-type]
    assert (asked["skip_bad_images"], asked["limit"]) == (skipped > 0, limit)


def test_the_command_that_evaluates_again_can_be_pasted_and_skips_what_was_skipped() -> None:
    attack = "foolbox:LinfPGD(steps=20, rel_stepsize=0.1)"
    summary = {"attacks": {attack: {}}, "eps": 0.01, "eps_text": "0.01", "norm": "linf", "seed": 0, "split": "test"}
    summary |= {"classes": "all", "n": 2, "skipped_images": ["a.png", "b.png"]}
    facts = SimpleNamespace(summary=summary, folder=Path("run"), own_data=True)
    words = shlex.split(_evaluate_again(facts))  # type: ignore[arg-type]
    assert words[words.index("--attack") + 1] == attack and words[words.index("--limit") + 1] == "4"
    assert "--skip-bad-images" in words
