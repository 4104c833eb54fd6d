"""docs/python.md: its examples run one after the other, as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in BLOCKS:
        if package := re.match(r"# pip install (\w+)", code):
            try:
                __import__(package[1])
            except ModuleNotFoundError:
                continue
        exec(compile(code, "docs/python.md", "exec"), names)
    result, model, x = names["result"], names["model"], names["x"]
    assert result.n == 100 and result.worst.accuracy > result.undefended.worst.accuracy
    assert model.score(names["test_X"], names["test_y"]) > 0.5 and names["search"].best_params_["eps"]
    assert float((names["adversarial"] - x).abs().max()) <= 14 / 255 + 1e-6
    assert len(names["fooled"]) == 100 - int(result.robust_mask().sum())
    assert names["difference"].low <= names["difference"].mean <= names["difference"].high
    worst = next(row for row in names["comparison"].rows if row.attack == "pgd-10")
    assert worst.difference == pytest.approx(names["difference"].mean, abs=0.01)
    before = names["zero_shot"](x)
    assert not torch.equal(names["student"](x), before), "the loop has trained"
