"""The rows of the server measure what they say."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import serve
from benchmarks.cases import Options

from .forked import Forked


def test_throughput_is_compared_with_the_best_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forked(words: list[str], **_: object) -> Forked:
        return Forked(partial(serve.main, **json.loads(words[-1])))

    about = {"geometry": "mini", "images": 8, "per_request": 2, "rounds": 2}
    with monkeypatch.context() as patch:
        patch.setattr(serve, "BATCHES", (1, 4))
        patch.setattr(serve, "subprocess", SimpleNamespace(Popen=forked, PIPE=None))
        row = serve.throughput(Options(results=tmp_path), about)
    assert row["best_batch"] in (1, 4) and 1 <= row["images_per_call"] <= row["best_batch"]
    assert row["images_per_s"] == pytest.approx(8 / row["ours_s"]) and row["ratio_reference"] > 0
    load = serve.under_load(Options(results=tmp_path), {"geometry": "mini", "minutes": 0.01, "per_request": 1})
    assert load["requests"] >= 20 and load["memory_late_mb"] > 10
