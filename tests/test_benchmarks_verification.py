"""The table of forgeries: rows are kept, and what is missing is measured by a second call."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from apd.evaluation.findings import Finding, Verification
from benchmarks import verification
from benchmarks.forgeries import FORGERIES

SIZE = verification.Size(epochs=1, shots=1, images=4, samples=2, seed=5)


def test_a_stopped_table_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, judged = tmp_path / "table.json", list[str]()

    def honest(place: Path, _: verification.Size) -> Path:
        (place / "run").mkdir()
        return place / "run"

    def judge(run: Path, size: verification.Size) -> Verification:
        if len(judged) == 5:
            raise KeyboardInterrupt
        judged.append(run.parent.name if (run / "forged").exists() else f"honest {size.seed}")
        good = not (run / "forged").exists()
        finding = Finding("again" if good else "card", good, f"{verification.ATTACK}: found")
        return Verification(str(run), 2, size.seed, (finding,))

    def forge(run: Path) -> None:
        (run / "forged").touch()

    monkeypatch.setattr(verification, "honest_run", honest)
    monkeypatch.setattr(verification, "judged", judge)
    monkeypatch.setattr(verification, "FORGERIES", {name: (forge, "card") for name in FORGERIES})
    with pytest.raises(KeyboardInterrupt):
        verification.measure(file, SIZE)
    assert len(json.loads(file.read_text())["rows"]) == 5
    judged[:] = [""] * 6
    found = verification.measure(file, SIZE)
    assert [row["run"] for row in found] == [*(f"honest, seed {seed}" for seed in (5, 6, 7)), *FORGERIES]
    assert len(judged) == 6 + len(found) - 5 and json.loads(file.read_text())["rows"] == found
    assert [row["verified"] for row in found] == [True] * 3 + [False] * len(FORGERIES)
    shutil.copy(file, tmp_path / "other.json")
    judged.clear()
    with pytest.raises(KeyboardInterrupt):  # of another size: nothing of it is taken over
        verification.measure(tmp_path / "other.json", verification.Size(2, 1, 4, 2, 5))
    assert len(judged) == 5
