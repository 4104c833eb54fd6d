"""Temporary folders are there as long as they are needed, and then go."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from apd.util.locks import LOCK, FolderLock
from apd.util.temporary import folder_for_a_while, folder_until_exit


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_folder_until_exit_goes_with_the_process_that_made_it(tmp_path: Path) -> None:
    code = (
        "import os\nfrom apd.util.temporary import folder_until_exit\nplace = folder_until_exit('apd-')\n"
        "(place / 'prompts').touch()\nif os.fork() == 0: raise SystemExit\n"
        "os.wait()\nprint(place, place.is_dir())"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    place, was_there = done.stdout.split()
    assert was_there == "True", "a fork that ends leaves it"
    assert Path(place).parent == tmp_path and not Path(place).exists()


def test_a_folder_until_exit_may_be_moved(tmp_path: Path) -> None:
    place = folder_until_exit("apd-")
    assert place.is_dir()
    place.rename(tmp_path / "kept")


def test_what_killed_processes_have_left_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    left, used, foreign = (tmp_path / f"apd-explore-{name}" for name in ("left", "used", "foreign"))
    for place in (left, used, foreign):
        (place / "uploads").mkdir(parents=True)
    (left / LOCK).touch()
    with FolderLock(used).held(), folder_for_a_while("apd-explore-") as own:
        assert own.is_dir() and not left.exists() and used.is_dir() and foreign.is_dir()
        with folder_for_a_while("apd-explore-"):
            assert own.is_dir(), "another explorer leaves it"
    assert not own.exists()
