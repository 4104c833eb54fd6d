"""The campaign of kills: processes die where they should, and a file that is not the same is noticed."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from apd.util.files import append_lines, write_atomic
from benchmarks.faults import FILES, TARGETS, TIME, Cycle, Whole, _cycles, _read, main, table
from benchmarks.faults_kill import Moment, forked
from benchmarks.faults_work import Place, Target, fingerprints


def work(folder: Path) -> None:
    """Seven file operations: a folder and its name, a file that is opened, synchronised, renamed, its name, what is left."""
    write_atomic(folder / "in" / "file.bin", b"x" * 1000)


@pytest.mark.parametrize(
    ("operation", "left"),
    [
        (1, set()),
        (2, {"in"}),
        (3, {"in"}),
        (4, {"in", "temporary"}),
        (5, {"in", "temporary"}),
        (6, {"in", "file.bin"}),
        (7, {"in", "file.bin"}),
    ],
)
def test_a_process_is_killed_before_an_operation_or_in_the_middle_of_a_write(
    tmp_path: Path, operation: int, left: set[str]
) -> None:
    folder, log = tmp_path / "out", tmp_path / "log"
    folder.mkdir()
    ended = forked(lambda: work(folder), folder, Moment(operation=operation), log)
    assert ended.killed and not ended.error
    found = {"temporary" if path.name.endswith(".tmp") else path.name: path for path in folder.rglob("*")}
    assert set(found) == left
    if operation == 4:
        assert found["temporary"].stat().st_size < 1000, "a part of it was written"
    shutil.rmtree(folder / "in", ignore_errors=True)
    whole = forked(lambda: work(folder), folder, Moment(), log)
    assert (whole.killed, whole.operations) == (False, 7)
    assert (folder / "in" / "file.bin").stat().st_size == 1000


def test_a_line_that_is_cut_off_leaves_those_before_it(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    append_lines(folder / "lines", "first\n")
    ended = forked(lambda: append_lines(folder / "lines", "second\n"), folder, Moment(operation=2), tmp_path / "log")
    assert ended.killed
    assert (folder / "lines").read_text().startswith("first\n") and (folder / "lines").stat().st_size < 13
    append_lines(folder / "lines", "third\n")
    assert (folder / "lines").read_text() == "first\nthird\n"


def test_errors_and_times_are_told_apart_from_kills(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("it broke")

    ended = forked(fail, tmp_path, Moment(), tmp_path / "log")
    assert not ended.killed and "it broke" in ended.error
    endless = forked(lambda: [None for _ in iter(int, 1)], tmp_path, Moment(cpu=0.05), tmp_path / "log")
    assert endless.killed and endless.cpu >= 0.05


def test_waiting_brings_no_kill_nearer_and_a_worker_has_its_own_clock(tmp_path: Path) -> None:
    waiting = forked(lambda: time.sleep(1), tmp_path, Moment(cpu=0.5), tmp_path / "log")
    assert not waiting.killed and waiting.cpu < 0.5 < waiting.seconds

    def start_a_worker() -> None:
        worker = os.fork()
        if worker == 0:
            _burn(60)
        os.waitpid(worker, 0)
        _burn(0.1)  # its own CPU time does not count

    ended = forked(start_a_worker, tmp_path, Moment(cpu=0.05), tmp_path / "log", worker=True)
    assert ended.killed and not ended.error and 0.05 <= ended.cpu < 10


def _burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_every_kill_hits_and_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(_: object, folder: Path) -> None:
        for name in "abcdef":
            if not (folder / name).exists():
                write_atomic(folder / name, name)
            _burn(0.003)

    place, target = Place(tmp_path, None), Target(slowly)  # type: ignore[arg-type]
    monkeypatch.setitem(TARGETS, "training", target)
    cycles = list(_cycles(place, "training", target, 9, [], 0))
    for kind, wanted in ((TIME, 5), (FILES, 4)):
        assert sum(len(cycle.kills) for cycle in cycles if cycle.kind == kind) == wanted
    assert all(cycle.kills and not cycle.error for cycle in cycles)
    rest = list(_cycles(place, "training", target, 9, cycles[:-1], 0))
    assert [(cycle.kind, cycle.number) for cycle in rest] == [(cycles[-1].kind, cycles[-1].number)]
    assert not list(_cycles(place, "training", target, 9, cycles, 0))


@pytest.mark.slow
def test_a_training_is_killed_and_what_was_done_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    arguments = ["--only", "training", "--each", "2", "--results", str(file)]
    main(arguments)
    cycles = json.loads(file.read_text())["cycles"]
    assert [(cycle["kind"], len(cycle["kills"]), cycle["differing"], cycle["error"]) for cycle in cycles] == [
        (TIME, 1, [], ""),
        (FILES, 1, [], ""),
    ]
    file.write_text(json.dumps({"seed": 0, "cycles": cycles[:1]}))
    main(arguments)
    kept, again = json.loads(file.read_text())["cycles"]
    assert kept == cycles[0] and again["kills"] == cycles[1]["kills"] and again["differing"] == []


def test_kills_of_another_seed_are_not_thrown_away(tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    file.write_text('{"seed": 1, "cycles": []}')
    with pytest.raises(SystemExit):
        _read(file, 0)
    assert _read(file, 1) == []


def test_files_are_compared_without_times(tmp_path: Path) -> None:
    for name, seconds, value in (("a", 1.0, 1), ("b", 2.0, 1), ("c", 1.0, 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"seconds": seconds, "deep": [{"value": value}]}))
        (tmp_path / name / "prompts.safetensors").write_bytes(b"the same")
    a, b, c = (fingerprints(tmp_path / name) for name in "abc")
    assert a == b
    assert {file for file in a if a[file] != c[file]} == {"run.json"}
    (tmp_path / "b" / ".run.json.7.tmp").write_bytes(b"half")
    assert set(fingerprints(tmp_path / "b")) - set(a) == {".run.json.7.tmp"}


def test_what_a_kill_leaves_is_old_or_new_or_between_or_broken() -> None:
    names = ("model", "model.json")
    whole = Whole(1.0, 9, {"model": "new", "model.json": "new"}, {"model": "old", "model.json": "old"})
    for model, description, wanted in (
        ("old", "old", (True, [])),
        ("new", "new", (True, [])),
        ("new", None, (False, [])),
        ("new", "old", (True, ["model.json"])),
        ("half", "old", (True, ["model", "model.json"])),
        ("half", "new", (True, ["model"])),
    ):
        found = {"model": model, ".model.lock": "there"} | ({"model.json": description} if description else {})
        assert whole.seen(found, names) == wanted


def test_the_table_counts_what_went_wrong() -> None:
    cycles = [
        Cycle("training", TIME, 0, [0.1, 0.2]),
        Cycle("training", FILES, 0, [3], differing=["run.json", ".x.1.tmp"]),
        Cycle("report", FILES, 0, [7, 8, 9], between=1),
        Cycle("bench", FILES, 0, [5, 6], error="it broke"),
    ]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table(cycles).splitlines()[2:]]
    assert rows == [
        ["training", TIME, "2", "", "1 of 1", "1 of 1", "0"],
        ["training", FILES, "1", "", "1 of 1", "0 of 1", "2"],
        ["report", FILES, "3", "2 of 3", "1 of 1", "1 of 1", "0"],
        ["bench", FILES, "2", "", "0 of 1", "0 of 0", "0"],
        ["all", "", "8", "", "3 of 4", "2 of 3", "2"],
    ]


def test_the_second_table_of_kills_is_that_of_the_committed_file() -> None:
    docs = Path(__file__).parents[1] / "docs"
    done = _read(docs / "results" / "faults-outputs.json", 0)
    assert sum(len(cycle.kills) for cycle in done) == 80
    assert table(done).strip() in (docs / "faults.md").read_text(encoding="utf-8")
