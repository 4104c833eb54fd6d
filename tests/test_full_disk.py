"""A disk that is full or read-only at any write costs that write, and nothing that was saved before."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from apd.errors import InputError
from apd.evaluation import evaluate_run
from apd.models import DualEncoder
from apd.runs.folder import Run
from apd.runs.output import check_output
from apd.util.locks import LOCK

from .refusals import fail_with, refused
from .training import start

WRITES = ("open", "write", "fsync", "replace")


@pytest.mark.parametrize(("call", "code"), [*((call, errno.ENOSPC) for call in WRITES), ("open", errno.EROFS)])
def test_a_disk_that_fails_at_any_write_of_a_training_costs_nothing_that_was_saved(
    tmp_path: Path, shallow: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """Each write fails once, in turn; every start but the last ends with one line, and the last as if nothing had been."""
    quick = ("train.attack.steps=1", "train.epochs=2")  # a checkpoint on the way and one at the end
    whole, folder = start(tmp_path / "whole", shallow, colours, *quick), tmp_path / "broken"
    for failing in range(100):
        with monkeypatch.context() as patch:
            calls = failing_writes(patch, folder, call, failing, code)
            with suppress(InputError):
                start(folder, shallow, colours, *quick, resume=True)
        if len(calls) <= failing:
            break
        assert not [file for file in folder.rglob("*") if file.name.endswith(".tmp")]
    assert 3 < failing < 99
    run = Run.open(folder)
    assert (run.path / "prompts.safetensors").read_bytes() == (whole.path / "prompts.safetensors").read_bytes()
    assert {file.name for file in run.path.iterdir()} == {file.name for file in whole.path.iterdir()}


def test_a_disk_that_is_full_at_any_write_of_an_evaluation_costs_only_that_write(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate() -> None:
        evaluate_run(run, attacks=["pgd-1"], limit=4, batch_size=2, checks=False, quiet=True, device="cpu")

    results = run / "results"
    evaluate()
    whole = {file.name: file.read_bytes() for file in results.glob("outcomes-*.json")}
    shutil.rmtree(results)
    for failing in range(100):
        with monkeypatch.context() as patch:
            calls = failing_writes(patch, run, "fsync", failing, errno.ENOSPC)
            with suppress(InputError):
                evaluate()
        if len(calls) <= failing:
            break
    assert 2 < failing < 99
    assert {file.name: file.read_bytes() for file in results.glob("outcomes-*.json")} == whole
    assert not (run / LOCK).exists() and not list(run.rglob(".*.tmp"))


def failing_writes(patch: pytest.MonkeyPatch, folder: Path, call: str, failing: int, code: int) -> list[str]:
    """Let the write of that number, below a folder, fail; the list grows by one with each."""
    calls: list[str] = []
    fail, real_open, fsync, replace = fail_with(code), open, os.fsync, os.replace

    def counted(name: str) -> bool:
        calls.append(name)
        return len(calls) == failing + 1

    class Writing:
        """A file whose writing fails after half of it."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Writing:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, content: Any) -> None:
            if counted("write"):
                self.file.write(content[: len(content) // 2])
                self.file.flush()
                fail()
            self.file.write(content)

    def opened(file: Any, mode: str = "r", **more: Any) -> Any:
        inside = isinstance(file, Path) and file.is_relative_to(folder) and set(mode) & set("wa+")
        if call == "open" and inside and counted("open"):
            fail()
        found = real_open(file, mode, **more)
        return Writing(found) if call == "write" and inside else found

    for module in ("apd.util.files", "apd.runs.metrics"):
        patch.setattr(f"{module}.open", opened, raising=False)
    if call == "fsync":
        patch.setattr("apd.util.files.os.fsync", lambda fd: fail() if counted("fsync") else fsync(fd))
    if call == "replace":
        patch.setattr("apd.util.files.os.replace", lambda *pair: fail() if counted("replace") else replace(*pair))
    return calls


def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apd.util.files.tempfile.TemporaryFile", fail_with(errno.EROFS))
    with refused(str(tmp_path / "run"), os.strerror(errno.EROFS)):
        check_output(tmp_path / "run")


def test_what_is_measured_of_a_run_that_cannot_be_written_to_needs_a_copy(
    finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apd.util.files.tempfile.TemporaryFile", fail_with(errno.EROFS))
    with refused(str(finished.path), os.strerror(errno.EROFS), f"cp -r {finished.path} COPY"), finished.held():
        pass
