"""A run whose images, CLIP model or place have changed since it was started."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import apd
from apd.runs.folder import Run

from .command_line import QUICK, Cli
from .models import save_colours
from .refusals import check_error
from .training import same


def _interrupted(cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in ``place`` that was stopped after two of three steps, on ``place/images`` and ``place/clip``."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("apd.training.loop.Loop.validate", stop)
        steps = ("--set", "train.batch_size=2", "--set", "train.checkpoint_every=1")
        run = place / "run"
        train = ("train", place / "images", "--model", place / "clip", *QUICK, *steps, "--output", run)
        assert cli(*train).code == 130
    return run


@pytest.fixture
def place(tmp_path: Path, shallow_folder: Path) -> Path:
    """A folder with images and a CLIP model that may be moved."""
    save_colours(tmp_path / "images")
    shutil.copytree(shallow_folder, tmp_path / "clip")
    return tmp_path


def test_a_training_goes_on_where_its_images_and_its_model_are_now(
    cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _interrupted(cli, place, monkeypatch)
    undisturbed = Path(shutil.copytree(run, place / "undisturbed"))
    assert cli("train", "--output", undisturbed, "--resume").code == 0
    (place / "images").rename(place / "photos")
    check_error(cli("train", "--output", run, "--resume"), ["images", f"apd train DATA --output {run} --resume"])
    (place / "clip").rename(place / "model")
    moved = ("train", place / "photos", "--output", run, "--resume")
    check_error(cli(*moved), ["clip", f"apd train --model MODEL --output {run} --resume"])
    assert cli(*moved, "--model", place / "model").code == 0
    found = Run.open(run)
    assert same(found.load_prompts(), Run.open(undisturbed).load_prompts())
    assert (found.config.data.source, found.config.model) == (str(place / "photos"), str(place / "model"))
    assert found.manifest["model"]["source"] == str(place / "model")
    assert cli("evaluate", run, "--attack", "pgd-1", "--limit", 2).code == 0


def test_a_training_does_not_go_on_with_other_images_or_another_model(
    cli: Cli, place: Path, shallow_folder: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _interrupted(cli, place, monkeypatch)
    before = (run / "config.yaml").read_bytes(), (run / "run.json").read_bytes()
    others = save_colours(place / "others")
    for file in others.rglob("*.png"):
        file.rename(file.with_name(f"new-{file.name}"))
    answer = cli("train", others, "--output", run, "--resume")
    check_error(answer, [str(run), str(others), "DATA", "--overwrite"])
    assert "sha256" not in answer.err
    check_error(cli("train", "--model", clip_folder, "--output", run, "--resume"), ["--overwrite"])
    assert ((run / "config.yaml").read_bytes(), (run / "run.json").read_bytes()) == before


@pytest.mark.parametrize("output", [("--output", "runs/none"), ()])
def test_nothing_to_resume_is_said(cli: Cli, output: tuple[str, ...]) -> None:
    check_error(cli("train", *output, "--resume"), [output[-1] if output else "--output"])


@pytest.mark.parametrize("more", [(), ("--shots", 2, "--unlabelled", "rest"), ("--shots", 0, "--unlabelled", "rest")])
def test_an_evaluation_warns_of_other_images_under_the_name_of_the_run_s_data(
    cli: Cli, place: Path, more: tuple[str | int, ...]
) -> None:
    images, run = place / "images", place / "run"
    first = apd.load_data(images).train.ids[0]
    (images / first).write_bytes(b"not an image")
    train = ("train", images, "--model", place / "clip", *QUICK, "--skip-bad-images", *more)
    assert cli(*train, "--output", run).code == 0
    evaluate = ("evaluate", run, "--attack", "clean", "--limit", 2)
    same_images = cli(*evaluate)
    assert same_images.code == 0 and "Warning" not in same_images.err
    for file in sorted(images.rglob("*.png"))[::2]:
        file.rename(file.with_name(f"new-{file.name}"))
    changed = cli(*evaluate)
    assert changed.code == 0 and f"Warning: {images} has other training or validation images" in changed.err


def test_a_finished_run_whose_model_has_moved_asks_for_its_place(cli: Cli, place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = ("train", place / "images", "--model", place / "clip", *QUICK, "--output", run)
    assert cli(*train).code == 0
    (place / "clip").rename(place / "model")
    photo = next((place / "images").rglob("*.png"))
    for command in (("predict", run, photo), ("export", run, "--to", "torch", "--output", tmp_path / "x.pt2")):
        check_error(cli(*command), [str(place / "clip"), str(run), "--model"])
    check_error(cli("predict", run, photo, "--model", place / "nowhere"), [str(place / "nowhere")])
    answer = cli("predict", run, photo, "--model", place / "model")
    assert answer.code == 0, answer.err
