"""Test images that are copies of training images are told, in training and in evaluation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import apd
from apd.data.copies import about_copies, find_copies

from .command_line import QUICK, Cli
from .models import save_colours


@pytest.fixture
def overlapping(tmp_path: Path) -> Path:
    """A folder with splits; two of its test images are files of its training images, under other names."""
    folder = tmp_path / "photos"
    for split in ("train", "test"):
        save_colours(folder / split, per_class=4, size=20 if split == "train" else 24)
    for name in ("red", "blue"):
        shutil.copy(folder / "train" / name / "001.png", folder / "test" / name / "copy.png")
    return folder


def test_copies_are_told_by_their_content(overlapping: Path, colours: Path) -> None:
    data = apd.load_data(overlapping, shots="all")
    assert find_copies([data.train, data.val], data.test) == {
        f"test/{name}/copy.png": f"train/{name}/001.png" for name in ("blue", "red")
    }
    assert find_copies([data.train], data.test, seconds=-1) == {}, "no time to look"
    same_size = overlapping / "test" / "red" / "copy.png"
    same_size.write_bytes(bytes(reversed(same_size.read_bytes())))
    assert [*find_copies([data.train, data.val], data.test)] == ["test/blue/copy.png"]
    for clean in (apd.load_data(colours), apd.load_data("digits")):
        assert about_copies(clean) is None


def test_training_and_evaluation_warn_of_copies(
    cli: Cli, overlapping: Path, shallow_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trained = cli("train", overlapping, "--model", shallow_folder, *QUICK, "--shots", "all", "--output", run)
    for answer in (trained, cli("evaluate", run, "--attack", "clean", "--limit", 2)):
        assert answer.code == 0
        assert "Warning: 2 of 14 test images of photos are copies" in answer.err
        assert "test/blue/copy.png is train/blue/001.png" in answer.err
