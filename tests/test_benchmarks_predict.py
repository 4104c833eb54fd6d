"""The row of classified files measures all of them, beside the model alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from apd.predict import Answers
from benchmarks import predict
from benchmarks.cases import Options, Results


def test_a_row_classifies_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    own = predict.classify_files

    def counting(classifier: object, files: list[Path]) -> list[Answers]:
        seen.extend(files)
        return list(own(classifier, files))  # type: ignore[arg-type]

    monkeypatch.setattr(predict, "classify_files", counting)
    row = predict.measure(Options(results=tmp_path), "mini", 40, 2)
    assert len(seen) == len(set(seen)) == 40
    assert row["rounds"]["ours"] == row["rounds"]["floor"] == 2
    assert row["share"] == pytest.approx(1 / row["ratio_floor"]) and row["images_per_s"] > 0
    assert 0 < row["share_processor"] < 2


def test_the_suite_is_of_a_thousand_files_of_the_published_geometry(tmp_path: Path) -> None:
    options = Options(results=tmp_path)
    (case,) = predict.cases(options, Results(tmp_path / "predict.json", options))
    assert (case.settings["geometry"], case.settings["images"]) == ("vit-b-32", 1000)
