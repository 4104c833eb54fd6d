"""One process at a time writes to a folder, and a dead one does not count."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from apd.bench import load_suite, make_plan
from apd.bench.report.rows import plan_file
from apd.errors import InputError
from apd.evaluation import calibrate_run
from apd.runs.config import RunConfig
from apd.runs.folder import Run
from apd.util.files import write_atomic
from apd.util.locks import LOCK, FolderLock

from .command_line import Cli
from .forked import FORKED
from .refusals import check_error, contains, refused
from .suites import Write
from .training import metrics, weights


def hold(folder: Path, connection: Any) -> None:
    """Hold the lock of a folder until killed; for a process of its own."""
    lock = FolderLock(folder)
    lock.acquire()
    connection.send("held")
    connection.recv()


def test_one_process_at_a_time_writes_to_a_run_and_a_dead_one_does_not_count(
    cli: Cli,
    run: Path,
    tmp_path: Path,
    config: RunConfig,
    manifest: dict[str, Any],
    shallow_folder: Path,
    colours: Path,
) -> None:
    unfinished = Run.create(tmp_path / "unfinished", config, manifest)
    unfinished.save_checkpoint(1, weights(1), {})
    unfinished.lock.release()
    for folder, command in (
        (run, ("evaluate", run, "--attack", "clean", "--limit", 2)),
        (run, ("certify", run, "--limit", 1, "--n0", 2, "--n", 28, "--no-control")),
        (
            run,
            ("wording", run, "--change", "typos", "--variants", 1, "--attack", "clean", "--limit", 2, "--no-control"),
        ),
        (run, ("calibrate", run)),
        (run, ("report", run, "--curve", "--no-images", "--output", tmp_path / "page.html")),
        (unfinished.path, None),
    ):
        connection, other = FORKED.Pipe()
        process = FORKED.Process(target=hold, args=(folder, other), daemon=True)
        process.start()
        assert connection.recv() == "held"
        before = sorted(folder.rglob("*"))
        if command is None:
            for switch in ({"resume": True}, {"overwrite": True}):
                with refused(str(folder)):
                    Run.create(folder, config, manifest, **switch)
        else:
            check_error(cli(*command), [str(folder)])
        assert sorted(folder.rglob("*")) == before
        process.kill()
        process.join()
        assert (folder / LOCK).exists(), "what a killed process leaves"
        if command is None:
            Run.create(folder, config, manifest, resume=True).lock.release()
        else:
            assert cli(*command).code == 0
        assert not (folder / LOCK).exists()


def test_one_process_at_a_time_writes_to_an_output(cli: Cli, run: Path, tmp_path: Path, write: Write) -> None:
    """A bench's folder, the demo's, and a single file, beside which others are written."""
    suite, bench, page = write(), tmp_path / "bench", tmp_path / "pages" / "page.html"
    write_atomic(plan_file(bench), make_plan(load_suite(suite), "cpu").to_json())
    assert cli("evaluate", run, "--attack", "clean", "--limit", 2).code == 0
    commands = {
        bench: ("bench", suite, "--output", bench, "--table-only"),
        tmp_path / "demo": ("demo", "--quick", "--output", tmp_path / "demo"),
        page: ("report", run, "--no-images", "--output", page),
    }
    for place, command in commands.items():
        lock = FolderLock(page.parent, entry=page.name) if place == page else FolderLock(place)
        with lock.held():
            before = contents(tmp_path)
            check_error(cli(*command), [str(place)])
            assert contents(tmp_path) == before
    with FolderLock(page.parent, entry=page.name).held():
        assert cli("report", run, "--no-images", "--output", page.with_name("other.html")).code == 0
    leftovers = [page.with_name(f".{name}") for name in ("page.html.7.tmp", "other.html.7.tmp", "page.html.bak.7.tmp")]
    for file in (*leftovers, page.with_name(f".{page.name}{LOCK}")):
        file.write_text("half a page")
    assert cli("report", run, "--no-images", "--output", page).code == 0
    assert set(page.parent.iterdir()) == {page, page.with_name("other.html"), *leftovers[1:]}
    assert cli(*commands[bench]).code == 0
    assert not (bench / LOCK).exists()


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_calibration_is_added_to_the_run_that_is_there(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is written anew between the command's first look at it and its lock."""
    opened = Run.open

    def open_late(path: Path, **more: Any) -> Run:
        found = opened(path, **more)
        found.manifest["summary"] = "old"
        monkeypatch.setattr(Run, "open", opened)
        return found

    monkeypatch.setattr(Run, "open", open_late)
    calibrate_run(run, device="cpu", quiet=True)
    assert Run.open(run).manifest["summary"] != "old" and Run.open(run).calibration is not None


def test_of_two_runs_that_start_in_one_folder_the_second_stops_at_its_first_write(
    tmp_path: Path, config: RunConfig, manifest: dict[str, Any]
) -> None:
    first, second = (Run.create(tmp_path / "run", config, manifest) for _ in range(2))
    first.log({"step": 1})
    answers: list[str] = []

    def write() -> None:
        try:
            second.log({"step": 1})
        except InputError as error:
            answers.append(str(error))

    thread = threading.Thread(target=write)  # another holder of the lock, as another process would be
    thread.start()
    thread.join()
    assert len(answers) == 1 and contains(answers[0], str(first.path))
    first.lock.release()
    with refused(str(first.path), "--resume"):
        second.log({"step": 1})
    assert len(metrics(first)) == 1
