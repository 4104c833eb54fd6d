"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apd.files import check_writable, write_atomic


def test_write_atomic_replaces_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deep" / "file.txt"
    write_atomic(file, "old")
    seen = []
    replace = os.replace

    def spy(source: Path, target: Path) -> None:
        seen.append((Path(source).parent == file.parent, Path(source).read_text(), file.read_text()))
        replace(source, target)

    monkeypatch.setattr("apd.files.os.replace", spy)
    write_atomic(file, "new")
    assert seen == [(True, "new", "old")], "the new text is complete, beside the old one, before it takes its place"
    assert file.read_text() == "new"
    assert [item.name for item in file.parent.iterdir()] == ["file.txt"]
    check_writable(file.parent)
    assert [item.name for item in file.parent.iterdir()] == ["file.txt"]
