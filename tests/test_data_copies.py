"""Images that a run has learned from are told where they are judged on: copies, and the training images themselves."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import apd
from apd.data.copies import about_copies, find_copies
from apd.data.settings import DataSettings

from .command_line import QUICK, Cli, Said
from .models import save_colours
from .refusals import fail_with


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


def test_copies_among_validation_images_are_told(
    cli: Cli, overlapping: Path, shallow_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(overlapping / "test", overlapping / "val")
    data = apd.load_data(overlapping, shots="all")
    told = about_copies(data, "val") or ""
    assert told.startswith("2 of 14 validation images of photos are copies of training images")
    run = tmp_path / "run"
    trained = cli("train", overlapping, "--model", shallow_folder, *QUICK, "--shots", "all", "--output", run)
    assert trained.code == 0 and told in trained.err
    judged = cli("evaluate", run, "--split", "val", "--attack", "clean", "--limit", 2)
    assert judged.code == 0 and told in judged.err and "test images of photos are copies" not in judged.err


def test_evaluating_on_the_training_images_is_told(cli: Cli, run: Path, colours: Path, tmp_path: Path) -> None:
    clean = ("--attack", "clean", "--limit", 2)
    assert "trained" not in cli("evaluate", run, *clean).err
    own = cli("evaluate", run, *clean, "--split", "train").err
    learned = apd.load_data(colours, shots=2)
    first = learned.train.ids[0]
    assert f"{run} was trained on 6 of the 6 training images of colours as they are drawn here ({first} is one)" in own

    for part in ("train", "test"):
        save_colours(tmp_path / "seen" / part, per_class=1, size=24 if part == "test" else 26)
    for name, source in zip(learned.train.ids, learned.train.sources, strict=True):
        assert isinstance(source, Path)
        (tmp_path / "seen" / "test" / name).with_suffix(".seen.png").symlink_to(source)
    told = f"{run} was trained or validated on 6 of the 9 test images of seen (test/{first.removesuffix('.png')}.seen.png is "
    for judged in (("evaluate", run, *clean), ("certify", run, "--limit", 1, "--n", 100, "--n0", 10)):
        answer = cli(*judged, "--data", tmp_path / "seen")
        assert answer.code == 0 and told in answer.err, answer.err
    assert told in cli("calibrate", run, "--data", tmp_path / "seen", "--split", "test").err
    unseen = save_colours(tmp_path / "unseen", per_class=6, size=30)
    assert "trained" not in cli("evaluate", run, *clean, "--data", unseen).err


def test_python_data_with_training_images_in_the_test_are_told(run: Path, colours: Path, said: Said) -> None:
    own = apd.load_data(colours, shots=2)
    apd.evaluate_run(run, data=replace(own, test=own.train), attacks="clean", device="cpu")
    assert any("was trained on 6 of the 6 test images" in message for message in said())


def test_of_another_draw_and_of_imported_prompts_nothing_is_claimed(run: Path, colours: Path, said: Said) -> None:
    file = run / "run.json"
    manifest = json.loads(file.read_text())
    data = apd.load_data(colours, shots=2)
    claimed = replace(data, test=data.train)
    for change in (
        {"data": {**manifest["data"], "ids_sha256": "0" * 64}},
        {"imported": {"form": "coop", "file": "a", "sha256": "b"}},
    ):
        file.write_text(json.dumps({**manifest, **change}))
        apd.evaluate_run(run, data=claimed, attacks="clean", device="cpu")
        assert not any("was trained on" in message for message in said()), change


def test_a_source_that_breaks_costs_no_evaluation_of_other_data(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataSettings, "load", fail_with(errno.EIO))
    other = save_colours(tmp_path / "other", per_class=4, size=30)
    assert apd.evaluate_run(run, data=str(other), attacks="clean", limit=2, device="cpu").n == 2
