"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from apd.bench import load_suite
from apd.errors import InputError
from apd.runs.config import load_config
from apd.util.files import check_writable, read_yaml, write_atomic

from .refusals import refused


def test_write_atomic_replaces_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deep" / "file.txt"
    write_atomic(file, "old")
    seen = []
    replace = os.replace

    def spy(source: Path, target: Path) -> None:
        seen.append((Path(source).parent == file.parent, Path(source).read_text(), file.read_text()))
        replace(source, target)

    monkeypatch.setattr("apd.util.files.os.replace", spy)
    write_atomic(file, "new")
    assert seen == [(True, "new", "old")], "the new text is complete, beside the old one, before it takes its place"
    assert file.read_text() == "new"
    assert [item.name for item in file.parent.iterdir()] == ["file.txt"]
    check_writable(file.parent)
    assert [item.name for item in file.parent.iterdir()] == ["file.txt"]


def bomb(levels: int = 8, width: int = 10) -> str:
    """A few hundred bytes of YAML that stand for ``width ** levels`` words."""
    lines = ["l0: &l0 [" + ", ".join(["lol"] * width) + "]"]
    for level in range(1, levels):
        lines.append(f"l{level}: &l{level} [" + ", ".join([f"*l{level - 1}"] * width) + "]")
    return "\n".join(lines)


def merge_bomb(levels: int = 8) -> str:
    """The same with merged mappings, which grow while the file is read."""
    lines = ["l0: &l0 {a: 1, b: 2}"]
    lines += [f"l{n}: &l{n} {{<<: [{', '.join([f'*l{n - 1}'] * 10)}]}}" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        bomb(),
        "data: &a [*a]",
        "data: &a {b: *a}",
        "[" * 3000,
        "seed: " + "1" * 5000,
        "when: 2024-13-45",
        "#" * 1_100_000,
        merge_bomb(),
    ],
    ids=["aliases", "list in itself", "mapping in itself", "deep", "number", "date", "large", "merge"],
)
def test_hostile_yaml_is_refused_in_a_short_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "hostile.yaml"
    file.write_text(text)
    for read in (read_yaml, load_config, load_suite):
        with pytest.raises(InputError) as told:
            read(file)
        assert "hostile.yaml" in str(told.value) and len(str(told.value)) < 500


def test_a_bomb_in_a_setting_is_refused() -> None:
    with refused("--set", "train.attack"):
        load_config(flags={"data.source": "digits"}, sets=["train.attack=&a [*a]"])


def test_ordinary_aliases_are_read(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("a: &one [1, 2]\nb: [*one, *one]\nc: {<<: &two {d: 3}, e: *two}\n")
    assert read_yaml(file) == {"a": [1, 2], "b": [[1, 2], [1, 2]], "c": {"d": 3, "e": {"d": 3}}}


def test_an_error_never_echoes_a_long_value(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"data": {"source": "digits", "shots": ["x" * 200] * 1000}}))
    with refused("data.shots", str(file)) as told:
        load_config(file)
    assert len(str(told.value)) < 500
