"""What Python users give by habit: a run for its folder, numpy's numbers, one text for a list."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import apd
from apd.attacks.threat import parse_eps
from apd.models import DualEncoder
from apd.predict import predict_files
from apd.report import report
from apd.runs.folder import Run

from .refusals import refused


def test_numbers_that_count_are_whole(clip: DualEncoder, colours: Path) -> None:
    data = apd.load_data(colours)
    assert len(data.test.sample(np.int64(2))) == 2  # type: ignore[arg-type]
    with refused("limit", "whole number", "1.5"):
        data.test.sample(1.5)  # type: ignore[arg-type]
    with refused("image_size", "whole number", "8.5"):
        apd.evaluate(torch.nn.Flatten(), data, attacks="clean", limit=2, image_size=8.5, quiet=True)  # type: ignore[arg-type]


def test_a_run_is_taken_for_its_folder(run: Path, tmp_path: Path) -> None:
    made = Run.open(run)
    assert apd.load_run(made).class_names == apd.load_run(run).class_names
    result = apd.evaluate_run(made, attacks="pgd-1", limit=2, checks=False, quiet=True)
    assert result.n == 2
    assert apd.precision(made) == apd.precision(run) == apd.precision([run])
    assert apd.leaderboard(run.parent).groups
    with refused("two run folders"):
        apd.compare_runs(made)
    page = report(made, tmp_path / "page.html", images=False, quiet=True)
    assert page.stat().st_size
    assert str(made) == str(run)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_numpy_s_numbers_are_numbers(run: Path, colours: Path, kind: type[np.floating]) -> None:
    few = apd.load_data(colours, shots=np.int64(2), seed=np.int64(1))
    assert few.train.ids == apd.load_data(colours, shots=2, seed=1).train.ids
    assert type(few.settings.shots) is int
    result = apd.evaluate_run(run, attacks="pgd-1", eps=kind(0.25), limit=np.int64(2), checks=False, quiet=True)
    assert (result.n, parse_eps(result.eps_text)) == (2, 0.25)


def test_one_text_is_no_list_of_names(shallow: DualEncoder) -> None:
    with refused("class_names", "'cat'"):
        apd.PromptedCLIP(shallow, None, "cat")
    classifier = apd.PromptedCLIP(shallow, None, ["cat", "dog"])
    with refused("class_names", "'cat'"):
        classifier.with_classes("cat")
    with refused("templates", "'a {}'"):
        classifier.with_classes(["cat", "dog"], "a {}")


def test_names_in_place_of_objects_say_what_makes_them(shallow: DualEncoder, colours: Path, run: Path) -> None:
    classifier = apd.PromptedCLIP(shallow, None, ["red", "green"])
    with refused("apd.load_data", "'colours'"):
        apd.train(shallow, "colours")
    with refused("apd.load_data", "'colours'"):
        apd.evaluate(classifier, "colours")
    with refused("apd.evaluate_run", "'runs/digits'"):
        apd.evaluate("runs/digits", apd.load_data(colours))


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(run: Path, device: str) -> None:
    for load in (lambda: apd.load_run(run, device=device), lambda: apd.load_clip("glyphs", device=device)):
        with refused(device, "auto"):
            load()


def test_the_best_device_is_taken_where_it_is_asked_for(run: Path) -> None:
    assert apd.load_run(run, device="auto").class_names == apd.load_run(run).class_names


def test_images_may_be_named_by_texts(run: Path, colours: Path) -> None:
    file = next(colours.rglob("*.png"))
    (answers,) = predict_files(run, [str(file)])
    assert not answers.bad and answers == next(predict_files(run, [file]))
    options: list[dict[str, Any]] = [{"top": 0}, {"abstain_below": 5.0}, {"abstain_below": math.nan}]
    for named, images, more in [(str(file), str(file), {}), *((next(iter(each)), [file], each) for each in options)]:
        with refused(named):
            next(predict_files(run, images, **more))


def test_a_file_of_a_run_is_told_from_its_folder(run: Path) -> None:
    with refused("run.json", "is a file"):
        apd.load_run(run / "run.json")
