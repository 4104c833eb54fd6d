"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import yaml

import apd
from apd.bench import load_suite
from apd.data.load import short_name
from apd.errors import InputError
from apd.runs.config import load_config
from apd.util.files import append_lines, check_writable, user_path, write_atomic
from apd.util.yaml_files import read_yaml

from .refusals import fail_with, refused


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


def test_a_link_to_nowhere_is_told_before_hours_of_work(tmp_path: Path) -> None:
    (tmp_path / "scratch").symlink_to(tmp_path / "not mounted")
    for place in ("scratch", "scratch/run"):
        with pytest.raises(InputError, match="not mounted"):
            check_writable(tmp_path / place)
    check_writable(tmp_path / "new" / "run")


def watch_the_disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Note what is synchronised, and what is renamed."""
    done: list[tuple[str, str]] = []
    replace, fsync = os.replace, os.fsync

    def renamed(source: Path, target: Path) -> None:
        replace(source, target)
        done.append(("renamed", Path(target).name))

    def synchronised(descriptor: int) -> None:
        fsync(descriptor)
        done.append(("synchronised", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))

    monkeypatch.setattr("apd.util.files.os.replace", renamed)
    monkeypatch.setattr("apd.util.files.os.fsync", synchronised)
    return done


def test_a_power_failure_loses_neither_content_nor_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, folder = watch_the_disk(monkeypatch), tmp_path / "a" / "b"
    write_atomic(folder / "file", "new")
    temporary = f".file.{os.getpid()}.tmp"
    at = done.index(("renamed", "file"))
    assert done[:at] == [("synchronised", name) for name in (tmp_path.name, "a", temporary)]
    assert done[at + 1 :] == [("synchronised", "b")], "the folder, after the file has its name"
    done.clear()
    write_atomic(folder / "file", "newer", keep=folder / "older")
    wanted = [("synchronised", temporary), ("renamed", "older"), ("renamed", "file"), ("synchronised", "b")]
    assert done == wanted
    done.clear()
    append_lines(folder / "lines", "one\n")
    assert done == [("synchronised", "lines"), ("synchronised", "b")]
    append_lines(folder / "lines", "two\n")
    assert done[2:] == [("synchronised", "lines")], "a name that is on the disk already"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENOTSUP])
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_file_system_that_does_not_synchronise_folders_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    done, fsync, fail = watch_the_disk(monkeypatch), os.fsync, fail_with(code)
    if call == "open":
        monkeypatch.setattr("apd.util.files.os.open", fail)
    else:
        monkeypatch.setattr(
            "apd.util.files.os.fsync", lambda fd: fsync(fd) if Path(f"/proc/self/fd/{fd}").is_file() else fail()
        )
    write_atomic(tmp_path / "new" / "file", "text")
    assert (tmp_path / "new" / "file").read_text() == "text"
    assert [name for what, name in done if what == "synchronised"] == [f".file.{os.getpid()}.tmp"]


def test_a_disk_that_fails_to_synchronise_a_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, fail = os.fsync, fail_with(errno.EIO)
    monkeypatch.setattr(
        "apd.util.files.os.fsync", lambda fd: fsync(fd) if Path(f"/proc/self/fd/{fd}").is_file() else fail()
    )
    with refused(str(tmp_path / "file"), os.strerror(errno.EIO)):
        write_atomic(tmp_path / "file", "text")


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
        "[" * 700,
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


def test_a_name_that_a_section_has_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("a: {x: 1}\nb:\n  apd: {x: 1}\n  'apd': {x: 2}\n")
    with refused(str(file), "line 4", "'apd'"):
        read_yaml(file)
    file.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a, 1: 0, '1': 0}\n")
    assert read_yaml(file)["b"] == {"x": 3, "y": 2}


def test_an_error_never_echoes_a_long_value(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"data": {"source": "digits", "shots": ["x" * 200] * 1000}}))
    with refused("data.shots", str(file)) as told:
        load_config(file)
    assert len(str(told.value)) < 500


def test_paths_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "x" * 300
    for read, source in ((apd.load_data, tmp_path / long), (short_name, f"{long}.csv"), (apd.load_clip, long)):
        with refused("too long"):
            read(source)
    with refused("'~nobody_here/x'", "no user 'nobody_here'", "./~nobody_here/x"):
        user_path("~nobody_here/x")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with refused("'~/x'", "HOME is not set"):
        user_path("~/x")
