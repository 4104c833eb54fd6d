"""Exports and pages whose process is killed at any of its file operations are the old ones or the new ones, whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from apd.errors import InputError
from apd.export.place import Place
from apd.report import build, report
from benchmarks.faults_kill import Moment, forked

from .command_line import Cli
from .refusals import check_error, refused

OLD, NEW = "<!doctype html>old", "<!doctype html>and new"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills count synchronising as an operation; that the disk does it is for power failures."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def export(path: Path, is_folder: bool, content: str, overwrite: bool = True) -> None:
    """Make an export of two files beside its description, or of one, without a model."""
    place = Place(path, is_folder)
    with place.held(overwrite) as made:
        if is_folder:
            (made / "tokenizer").mkdir(parents=True)
            (made / "tokenizer" / "words").write_text(content)
            (made / "model").write_text(content)
        else:
            made.write_text(content)
        place.put(content)


def seen(folder: Path) -> dict[str, str]:
    """What others see in a folder: names that do not begin with a dot, and what the files say."""
    files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    return {str(file): (folder / file).read_text() for file in files if not str(file).startswith(".")}


def killed(folder: Path, old: bool, is_folder: bool) -> Iterator[Path]:
    """Export over an old export, or nothing, and be killed before each file operation in turn; yields the place."""
    for operation in range(1, 100):
        path = folder / str(operation) / "x"
        path.parent.mkdir()
        if old:
            export(path, is_folder, OLD)
        work = lambda place=path: export(place, is_folder, NEW)  # noqa: E731
        ended = forked(work, path.parent, Moment(operation=operation), folder / "log")
        assert not ended.error
        if not ended.killed:
            assert operation > 15, "so many operations are there"
            return
        yield path


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("is_folder", [False, True])
def test_an_export_that_is_killed_is_the_old_or_the_new_one(tmp_path: Path, old: bool, is_folder: bool) -> None:
    names = ["x/classifier.json", "x/model", "x/tokenizer/words"] if is_folder else ["x", "x.json"]
    before, after = dict.fromkeys(names, OLD) if old else {}, dict.fromkeys(names, NEW)
    between = []
    for path in killed(tmp_path, old, is_folder):
        found = seen(path.parent)
        if found not in (before, after):
            between.append(found)
        with suppress(InputError):  # the next command moves what is ready, whether or not it may replace it
            export(path, is_folder, "third", overwrite=False)
        found = seen(path.parent)
        assert found in ((before, after) if old else (dict.fromkeys(names, "third"), after))
        export(path, is_folder, NEW)
        assert seen(path.parent) == after
        assert not list(path.parent.rglob(".*"))
    # A folder is away for a moment. A model is never away, and without its description rather than beside another's.
    if is_folder:
        assert between == ([{}] if old else [])
    else:
        assert between == ([{"x": OLD}, {"x": NEW}] if old else [{"x": NEW}])


def test_a_page_whose_process_is_killed_is_the_old_or_the_new_one(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("evaluate", run, "--attack", "clean", "--limit", 2).code == 0
    monkeypatch.setattr(build, "_page", lambda *_: NEW)  # drawing it takes a second
    folder, found = tmp_path / "pages", list[str]()
    for operation in range(1, 100):
        page = folder / str(operation) / "page.html"
        page.parent.mkdir(parents=True)
        page.write_text(OLD)
        work = lambda page=page: report(run, page, quiet=True)  # noqa: E731
        ended = forked(work, page.parent, Moment(operation=operation), tmp_path / "log")
        assert not ended.error
        found.append(page.read_text())
        report(run, page, quiet=True)
        assert page.read_text() == NEW and list(page.parent.iterdir()) == [page]
        if not ended.killed:
            break
    assert set(found) == {OLD, NEW} and found == sorted(found, key=[OLD, NEW].index) and len(found) > 6


def test_one_process_at_a_time_exports_to_a_place(cli: Cli, run: Path, tmp_path: Path) -> None:
    place = Place(tmp_path / "x.pt2", is_folder=False)
    with place.held(overwrite=False):
        check_error(cli("export", run, "--to", "torch", "--output", place.path), [str(place.path)])
        export(tmp_path / "y.pt2", False, NEW)
    export(place.path, False, NEW)
    assert sorted(file.name for file in tmp_path.iterdir() if file != run) == [
        "x.pt2",
        "x.pt2.json",
        "y.pt2",
        "y.pt2.json",
    ]


def test_a_clone_keeps_its_history(tmp_path: Path) -> None:
    folder = tmp_path / "photos-robust"
    (folder / ".git").mkdir(parents=True)
    (folder / "classifier.json").write_text("{}")  # as of an earlier export
    with refused(str(folder), "another folder"), Place(folder, is_folder=True).held(overwrite=True):
        pass
    assert (folder / ".git").is_dir() and (folder / "classifier.json").read_text() == "{}"
