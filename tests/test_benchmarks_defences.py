"""Planted defences: each answers like a model, the indicators fire where the paper says, and a table counts what was caught."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from apd.attacks import ThreatModel
from benchmarks.defences import page, table
from benchmarks.defences.indicators import INDICATORS, indicators
from benchmarks.defences.planted import PLANTED, Case, plant
from benchmarks.defences.subjects import Subjects
from benchmarks.defences.table import measure

from .toys import decoded, trained

EPS = 0.06


@pytest.fixture
def case() -> Case:
    images = decoded(12, 5)
    return Case(trained(5), trained(5, "linear"), images.pixels(), images.labels, EPS)


def test_there_are_enough_and_each_answers(case: Case) -> None:
    assert len(PLANTED) >= 35 and len({kind for kind, _ in PLANTED.values()}) >= 9
    for name in PLANTED:
        with torch.no_grad():
            z = plant(name, case)(case.x)
        assert z.shape == (12, 5) and bool(z.isfinite().all()), name


@pytest.mark.parametrize(
    ("name", "fires"),
    [
        ("detached pixels", {"unavailable gradients"}),
        ("zero gradient", {"unavailable gradients", "unconstrained attack failure"}),
        ("reversed gradient", {"unconstrained attack failure"}),
        ("noise on logits", {"unstable predictions"}),
        (None, set()),
    ],
)
def test_indicators_of_attack_failure(case: Case, name: str | None, fires: set[str]) -> None:
    torch.manual_seed(0)
    model: nn.Module = case.base if name is None else plant(name, case)
    right = case.base(case.x).argmax(dim=-1) == case.labels
    found = indicators(model, case.x[right], case.labels[right], ThreatModel(EPS))
    assert tuple(found) == INDICATORS
    assert fires <= {one for one, fired in found.items() if fired} and any(found.values()) == bool(fires)


def test_rows_are_kept_and_make_the_page(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = Subjects(decoded(12, 5), ("a", "b", "c", "d", "e"), EPS, case, {"honest one": case.base})
    file = tmp_path / "defences-toy.json"
    names = ["reversed gradient", "cached clean answers"]
    measure(subjects, file, names, library_images=0)
    rows = measure(subjects, file, names, library_images=0)
    assert [row.name for row in rows] == names == [row["name"] for row in json.loads(file.read_text())["rows"]]
    assert "true gradients" in rows[0].caught and "flat spots" in rows[1].caught and rows[1].library is None
    monkeypatch.setattr(table, "LIBRARY", ("apgd-ce",))
    assert [replace(row, library=None) for row in measure(subjects, file, names, library_images=2)] == rows
    assert [row["library"] for row in json.loads(file.read_text())["rows"]] == [[], []]
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    page.PAGE.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    page.write_page(tmp_path)
    text = page.PAGE.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| health checks | 2 of 2 | 2 of 2 | - |" in text
