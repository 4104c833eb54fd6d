"""The row of streamed images measures what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import unlabelled
from benchmarks.cases import Options, Results
from benchmarks.geometry import GEOMETRIES, save


def test_links_are_as_many_images_as_asked_for_of_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlabelled, "ORIGINALS", 20)
    monkeypatch.setattr(unlabelled, "IN_A_FOLDER", 30)
    files = list(unlabelled.linked(tmp_path, 50).rglob("*.jpg"))
    assert len(files) == 50 and len({file.stat().st_ino for file in files}) == 20
    assert len({file.parent for file in files}) == 2


def test_a_row_has_memory_and_shares_of_waiting(tmp_path: Path) -> None:
    about = {"geometry": "mini", "images": 40, "batch": 4, "memory_gb": 0.0, "steps": 2, "device": "cpu"}
    row = unlabelled.measure({**about, "folder": str(save(GEOMETRIES["mini"], tmp_path / "clip"))})
    assert row["rounds"]["ours"] == row["rounds"]["reference"] == 2
    assert 0 <= row["share_decoding"] <= row["share"] < 1
    assert row["peak_mb"] >= row["memory_before_mb"] > 0 and row["check_s"] > 0


def test_a_row_compares_steps_with_and_without_unlabelled_images(tmp_path: Path) -> None:
    about = {"geometry": "mini", "images": 12, "batch": 4, "shots": 2, "steps": 2, "device": "cpu"}
    row = unlabelled.measure({**about, "folder": str(save(GEOMETRIES["mini"], tmp_path / "clip"))})
    assert row["rounds"] == {"ours": 2, "reference": 2, "floor": 0}
    assert row["ratio_reference"] > 0 and "peak_mb" not in row


def test_the_suite_is_of_more_images_than_are_kept(tmp_path: Path) -> None:
    options = Options(results=tmp_path)
    case, mixed = unlabelled.cases(options, Results(tmp_path / "unlabelled.json", options))
    labelled, batch = unlabelled.CLASSES * mixed.settings["shots"], mixed.settings["batch"]
    assert labelled % batch == 0 and (labelled + mixed.settings["images"]) % batch == 0
    size = GEOMETRIES[case.settings["geometry"]].image_size
    assert case.settings["images"] == 100_000
    assert case.settings["images"] * 3 * size**2 > case.settings["memory_gb"] * 1024**3
