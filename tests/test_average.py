"""The mean of several runs' prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import apd
from apd.models import DualEncoder
from apd.runs.folder import Run

from .command_line import Cli, Said
from .models import save_colours
from .refusals import check_error, refused

SMALL = {"text_tokens": 2, "visual_tokens": 2}
QUICK: dict[str, Any] = {"epochs": 1, "device": "cpu", "quiet": True}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, clip: DualEncoder, colours: Path) -> list[Run]:
    folder, data = tmp_path_factory.mktemp("runs"), apd.load_data(colours, shots=1)
    method = {"name": "vlp", "prompts": SMALL}
    return [apd.train(clip, data, method=method, output=folder / str(seed), seed=seed, **QUICK) for seed in range(3)]


def test_the_mean_is_of_each_number(runs: list[Run], tmp_path: Path, clip: DualEncoder) -> None:
    mean = apd.average_runs([run.path for run in runs], tmp_path / "mean")
    tensors = [run.load_prompts() for run in runs]
    for name, value in mean.load_prompts().items():
        wanted = [sum(row) / 3 for row in zip(*(each[name].flatten().tolist() for each in tensors), strict=True)]
        torch.testing.assert_close(value.flatten(), torch.tensor(wanted))
    found = [about["prompts_sha256"] for about in Run.open(mean.path).manifest["averaged"]]
    assert found == [run.manifest["prompts_sha256"] for run in runs]
    classifier = apd.load_run(mean.path, encoder=clip)
    assert torch.isfinite(classifier(torch.rand(2, 3, 16, 16))).all()


def test_only_like_prompts_are_averaged(runs: list[Run], tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    with refused("list of run folders", str(runs[0].path)):
        apd.average_runs(str(runs[0].path), tmp_path / "one")
    one = runs[0].path
    with refused("two", "1"):
        apd.average_runs([one], tmp_path / "mean")
    data, deeper = apd.load_data(colours, shots=1), {**SMALL, "text_tokens": 3}
    other = apd.train(clip, data, method={"name": "vlp", "prompts": deeper}, output=tmp_path / "other", **QUICK)
    with refused(str(other.path), "prompts", str(one)):
        apd.average_runs([one, other.path], tmp_path / "mean")
    empty = apd.train(clip, data, method="zero-shot", output=tmp_path / "zero", **QUICK)
    with refused(str(empty.path)):
        apd.average_runs([empty.path, empty.path], tmp_path / "mean")
    with refused(str(one), "twice"):
        apd.average_runs([one, one], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_a_mean_of_other_methods_and_budgets_says_so(
    runs: list[Run], tmp_path: Path, clip: DualEncoder, colours: Path, said: Said
) -> None:
    data = apd.load_data(colours, shots=1)
    method = {"name": "advvlp", "prompts": {**SMALL, "class_specific": False}}
    other = apd.train(clip, data, method=method, output=tmp_path / "other", eps="2/255", **QUICK)
    before = len(said())
    mean = apd.average_runs([runs[0].path, other.path, runs[1].path], tmp_path / "mean")
    about = "method.name (vlp, advvlp), train.eps (1/255, 2/255)"
    (line,) = said()[before:]
    assert about in line and str(runs[0].path) in line and "train.norm" not in line
    assert mean.manifest["summary"]["averaged_over"] == about
    assert "| averaged over |" in (mean.path / "README.md").read_text()
    assert "averaged_over" not in apd.average_runs([run.path for run in runs], tmp_path / "same").manifest["summary"]
    assert len(said()) == before + 1


def test_the_command_averages_and_refuses_an_output_that_is_there(runs: list[Run], tmp_path: Path, cli: Cli) -> None:
    paths, output = [run.path for run in runs[:2]], tmp_path / "mean"
    assert cli("average", *paths, "--output", output).code == 0
    assert len(Run.open(output).manifest["averaged"]) == 2
    check_error(cli("average", *paths, "--output", output), [str(output), "--overwrite"])
    assert cli("average", *paths, "--output", output, "--overwrite").code == 0


def test_a_mean_is_told_of_validation_images_that_one_of_its_runs_has_learned(
    tmp_path: Path, clip: DualEncoder, cli: Cli
) -> None:
    """Without validation images of its own, a data set gives other ones to each seed."""
    for split in ("train", "test"):
        save_colours(tmp_path / "photos" / split, per_class=2, size=20 if split == "train" else 24)
    data = [apd.load_data(tmp_path / "photos", shots=1, seed=seed) for seed in range(3)]
    learned = {id_ for other in data[1:] for id_ in other.train.ids} & {*data[0].val.ids}
    assert learned
    method = {"name": "vlp", "prompts": SMALL}
    one, *others = (
        apd.train(clip, images, method=method, output=tmp_path / str(seed), seed=seed, **QUICK).path
        for seed, images in enumerate(data)
    )
    mean = apd.average_runs([one, *others], tmp_path / "mean").path
    told = f"{mean} was trained on {len(learned)} of the {len(data[0].val)} validation images of photos"
    judged = cli("evaluate", mean, "--attack", "clean", "--split", "val")
    assert judged.code == 0 and told in judged.err
    for silent in (("evaluate", one, "--split", "val"), ("evaluate", mean)):
        assert "was trained on" not in cli(*silent, "--attack", "clean").err
    check_error(cli("calibrate", mean), [str(mean), str(len(learned)), "val images", "give"])
    again = apd.average_runs([mean, one], tmp_path / "again")
    assert [len(about["draws"]) for about in again.manifest["averaged"]] == [3, 1]
    file = mean / "run.json"
    file.write_text(file.read_text().replace('"seed": 1', '"seed": "one"'))
    check_error(cli("calibrate", mean), [str(file), "averaged.draws: data.seed", "apd average"])
