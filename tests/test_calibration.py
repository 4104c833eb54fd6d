"""Temperature scaling against slow references, its record in a run, and where it is used."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import apd
from apd.data.decode import read_image
from apd.data.settings import DataSettings
from apd.errors import ApdError
from apd.evaluation.learned import learned_unlabelled
from apd.evaluation.verify_card import check_card
from apd.models.calibration import BINS, Calibration, expected_calibration_error, probabilities
from apd.runs.draw import Draw
from apd.runs.folder import Run

from .command_line import Cli
from .refusals import check_error, contains, refused


def problem(scale: float, n: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits ``scale`` times too sharp, and labels drawn from the probabilities that are right."""
    generator = torch.Generator().manual_seed(seed)
    true = 2 * torch.randn(n, 5, generator=generator)
    labels = torch.multinomial(true.softmax(dim=1), 1, generator=generator).flatten()
    return scale * true, labels


def loss_at(temperature: float, logits: Tensor, labels: Tensor) -> float:
    """Cross entropy of the images and of one more whose class is unknown, image by image."""
    total, spread = 0.0, 0.0
    for z, y in zip(logits.double().tolist(), labels.tolist(), strict=True):
        scaled = [value / temperature for value in z]
        norm = max(scaled) + math.log(sum(math.exp(value - max(scaled)) for value in scaled))
        total += norm - scaled[y]
        spread += sum(norm - value for value in scaled) / len(z)
    return total + spread / len(logits)


@pytest.mark.parametrize("seed", [0, 1, 5, 7])
def test_tiny_logits_do_not_end_the_search_where_it_starts(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = 1e-3 * torch.randn(61, 4, generator=generator), torch.randint(0, 4, (61,), generator=generator)
    found = loss_at(Calibration.fit(logits, labels).temperature, logits, labels)
    assert found <= min(loss_at(t, logits, labels) for t in np.logspace(-2, 2, 100)) + 1e-6


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_the_temperature_is_that_of_a_fine_grid(scale: float) -> None:
    logits, labels = problem(scale)
    found = Calibration.fit(logits.float(), labels)
    grid = np.exp(np.linspace(math.log(0.2 * scale), math.log(5 * scale), 81))
    best = min(grid, key=lambda t: loss_at(t, logits, labels))
    assert found.temperature == pytest.approx(best, rel=0.05)
    assert loss_at(found.temperature, logits, labels) <= loss_at(best, logits, labels)
    assert found.temperature == pytest.approx(scale, rel=0.2)
    assert found.images == 400


@pytest.mark.parametrize("scale", [0.3, 4.0])
def test_the_error_falls_on_other_images_too(scale: float) -> None:
    found = Calibration.fit(*problem(scale, seed=1))
    assert found.ece_after < found.ece_before / 2
    logits, labels = problem(scale, n=4000, seed=2)
    before, after = (expected_calibration_error(probabilities(logits, c), labels) for c in (None, found))
    assert after < before / 2


def test_the_error_is_that_of_a_loop_over_bins() -> None:
    logits, labels = problem(1.7)
    shown = logits.softmax(dim=1)
    expected = 0.0
    for m in range(BINS):
        inside = [
            (max(p), p.index(max(p)) == y)
            for p, y in zip(shown.double().tolist(), labels.tolist(), strict=True)
            if m / BINS < max(p) <= (m + 1) / BINS
        ]
        if inside:
            confidence, accuracy = (sum(float(pair[i]) for pair in inside) / len(inside) for i in (0, 1))
            expected += len(inside) / len(labels) * abs(accuracy - confidence)
    assert expected_calibration_error(shown, labels) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("calibration", [None, Calibration(1e-300, 3, 0.2, 0.1)])
def test_probabilities_that_are_not_finite_are_an_error(calibration: Calibration | None) -> None:
    """`apd predict` printed them, and its JSON was none."""
    with refused("not finite", by=ApdError):
        probabilities(torch.tensor([[1.0, math.inf if calibration is None else 2.0]]), calibration)


def test_a_perfect_or_useless_classifier_gets_a_finite_temperature() -> None:
    labels = torch.arange(20) % 4
    right = 3 * torch.nn.functional.one_hot(labels, 4).float()
    perfect, useless = Calibration.fit(right, labels), Calibration.fit(-right, labels)
    assert 0.01 < perfect.temperature < 1
    shown = probabilities(right, perfect).max(dim=1).values.mean()
    assert 0.9 < shown < 1
    assert useless.temperature == 100.0


def test_what_cannot_be_calibrated_is_refused() -> None:
    with refused("0 labels"):
        Calibration.fit(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with refused("labels"):
        Calibration.fit(torch.zeros(2, 3), torch.tensor([0, 3]))
    with refused("finite"):
        Calibration.fit(torch.full((2, 3), float("nan")), torch.tensor([0, 1]))


def test_a_record_is_read_again() -> None:
    found = Calibration.fit(*problem(2.0), split="test")
    assert Calibration.read(found.record()) == found
    older = {key: value for key, value in found.record().items() if key != "split"}
    assert Calibration.read(older).split == "val"


def test_training_records_a_calibration_that_calibrate_finds_again(cli: Cli, run: Path) -> None:
    kept = Run.open(run)
    before = {
        file.name: file.read_bytes() for file in run.iterdir() if file.suffix not in (".json", ".md") and file.is_file()
    }
    assert kept.calibration is not None
    assert kept.calibration.images == kept.manifest["data"]["validation_images"]
    del kept.manifest["calibration"]
    (run / "run.json").write_text(json.dumps(kept.manifest))
    assert Run.open(run).calibration is None
    answer = cli("calibrate", run, "--json")
    assert answer.code == 0, answer.err
    again = Run.open(run).calibration
    assert again is not None and json.loads(answer.out) == again.record()
    assert again.temperature == pytest.approx(Run.open(run).manifest["calibration"]["temperature"])
    assert again.record() == Run.open(run).manifest["calibration"]
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.name in before} == before
    assert cli("calibrate", run, "--split", "test").code == 0
    card = (run / "README.md").read_text()
    row = next(line for line in card.splitlines() if line.startswith("| probabilities |"))
    assert "test images" in row and "validation" not in row and check_card(Run.open(run)) is None


def test_an_error_that_did_not_fall_is_told(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for after, told in ((0.17, True), (0.10, False)):
        monkeypatch.setattr(
            "apd.evaluation.calibrate_run", lambda *_, after=after, **__: Calibration(1.0, 16, 0.14, after)
        )
        assert ("--data LABELLED_IMAGES" in cli("calibrate", run).err) == told


def test_the_same_classes_in_another_order_are_calibrated_on(run: Path, colours: Path) -> None:
    """A folder has its classes in alphabetical order, a split file may not."""
    data = apd.load_data(colours)
    last = len(data.class_names) - 1
    turned = replace(data.test, labels=last - data.test.labels)
    other = replace(data, class_names=data.class_names[::-1], test=turned)
    given = (data, other, colours)
    found = [apd.evaluation.calibrate_run(run, data=each, split="test", quiet=True) for each in given]
    # Up to rounding, which depends on the order of the classes: the calibration error is a difference of nearly equal numbers.
    first, *others = ([one.temperature, one.images, one.ece_before, one.ece_after] for one in found)
    assert all(one == pytest.approx(first, rel=1e-4) for one in others) and {one.split for one in found} == {"test"}


def test_calibrate_refuses_what_it_cannot_use(cli: Cli, run: Path, tmp_path: Path) -> None:
    check_error(cli("calibrate", run, "--split", "train"), ["train", str(run)])
    check_error(cli("calibrate", run, "--split", "tets"), ["tets", "test"])
    check_error(cli("calibrate", run, "--data", "digits"), ["digits", str(run)])
    check_error(cli("calibrate", tmp_path / "none"), ["none"])


def test_images_that_were_trained_on_without_labels_are_not_taken_for_unseen(
    cli: Cli, clip_folder: Path, colours: Path, tmp_path: Path
) -> None:
    more, run = tmp_path / "more", tmp_path / "run"
    shutil.copytree(colours, more)
    shutil.copytree(colours, tmp_path / "split" / "train")
    shutil.copytree(colours, tmp_path / "split" / "test")
    quick = ("--shots", 2, "--epochs", 1, "--device", "cpu", "--set", "train.attack.steps=1")
    done = cli("train", colours, "--model", clip_folder, "--unlabelled", more, *quick, "--output", run)
    assert done.code == 0, done.err
    check_error(cli("calibrate", run, "--data", more), [str(run), "data.unlabelled", str(more)])
    judged = cli("evaluate", run, "--data", more, "--attack", "clean")
    lines = [line for line in judged.err.splitlines() if "data.unlabelled" in line]
    assert judged.code == 0 and [contains(line, str(run), "more", "labels") for line in lines] == [True]
    source = str(tmp_path / "split")
    own = [Draw(data=DataSettings(source=str(colours), unlabelled=source), seed=0, ids_sha256=None, left_out=())]
    split = apd.load_data(source, shots="all")
    assert learned_unlabelled(own, source, split.val) == len(split.val) > 0
    assert learned_unlabelled(own, source, split.test) == learned_unlabelled(own, str(more), split.val) == 0


def test_predict_shows_calibrated_probabilities(cli: Cli, run: Path, colours: Path) -> None:
    image, kept = colours / "red" / "000.png", Run.open(run)
    shown = {}
    for temperature in (0.5, 2.0):
        kept.save_calibration(Calibration(temperature, 3, 0.2, 0.1))
        answer = cli("predict", run, image, "--json")
        shown[temperature] = {entry["class"]: entry["probability"] for entry in json.loads(answer.out)[0]["classes"]}
        assert "temperature" in answer.err
    classifier = apd.load_run(run)
    pixels = torch.tensor(read_image(image, classifier.encoder.info.preprocessing))[None].float() / 255
    with torch.no_grad():
        logits = classifier(pixels)[0]
    for temperature, found in shown.items():
        expected = dict(zip(classifier.class_names, (logits / temperature).softmax(0).tolist(), strict=True))
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("below", "abstained"), [(0.0, False), (1.0, True)])
def test_predict_abstains(cli: Cli, run: Path, colours: Path, below: float, abstained: bool) -> None:
    options = ("predict", run, colours / "red" / "000.png", "--abstain-below", below)
    row = json.loads(cli(*options, "--json").out)[0]
    assert row["abstained"] is abstained
    (table,) = csv.DictReader(io.StringIO(cli(*options, "--format", "csv").out))
    assert table["abstained"] == str(abstained).lower()
    assert ("abstained" in cli(*options).out) is abstained


def test_the_mean_of_runs_is_not_calibrated(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    assert apd.average_runs([run, other], tmp_path / "mean").calibration is None
