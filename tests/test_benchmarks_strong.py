"""The comparison of ``strong`` with the library's AutoAttack: what it counts, and how it is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apd.attacks.threat import Norm, ThreatModel
from benchmarks import strong
from benchmarks.planted import rare_class

from .toys import pictures, trained


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_both_attack_the_same_images(norm: Norm) -> None:
    """At a budget at which all images fall to the first part, so that it takes a second."""
    model = trained(5)
    x, labels = pictures(10, 5)
    row = strong.compared("toy", model, x, labels, ThreatModel(0.5 if norm == "linf" else 6.0, norm))
    assert row["clean"] == int((model(x).argmax(dim=1) == labels).sum()) > 0
    assert row["pyautoattack"]["robust"] == row["strong"]["robust"] == row["left by strong alone"] == 0
    assert row["strong"]["by"] == {"apgd-ce": row["clean"]}
    assert row["strong"]["passes"] > 0 and row["pyautoattack"]["passes"] > 0


def test_the_planted_class_is_within_reach_of_the_last_class_only() -> None:
    model, x, labels, eps = rare_class(4)
    assert (model(x).argmax(dim=1) == labels).all()
    weights = model[1].weight  # type: ignore[index]
    gained = eps * (weights - weights[0]).abs().sum(dim=1)
    gaps = model(x)[:, :1] - model(x)
    reachable = (gained > gaps).all(dim=0)
    assert reachable.nonzero().flatten().tolist() == [13]


def test_rows_are_kept_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"robust": 1, "passes": 100, "seconds": 1.0}
    row = {"model": "toy", "norm": "linf", "eps": 4 / 255, "images": 4, "clean": 3, "left by strong alone": 0}
    row |= {"pyautoattack": told, "strong": {**told, "robust": 0, "passes": 150}}
    monkeypatch.setattr(strong, "measured", lambda asked: iter([row]))
    kept = tmp_path / "strong.json"
    for _ in range(2):
        strong.main(["--results", str(kept)])
    assert [old["model"] for old in json.loads(kept.read_text())["rows"]] == ["toy"]
    told_row = capsys.readouterr().out.splitlines()[-1]
    cells = [cell.strip() for cell in told_row.strip("|").split("|")]
    assert cells == ["toy", "linf, 4/255", "4", "75.0 %", "25.0 %", "0.0 %", "0", "1.50"]
