"""`apd.evaluate_run`: what `apd evaluate RUN` does, from Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import apd
from apd.data import Dataset
from apd.data.settings import DataSettings
from apd.util.messages import get_logger

from .command_line import QUICK as SHORT
from .command_line import Cli
from .models import save_colours
from .refusals import meant, refused

QUICK: dict[str, Any] = {"attacks": "pgd-2", "limit": 4, "checks": False, "quiet": True, "device": "cpu"}


def without_time(record: dict[str, Any]) -> dict[str, Any]:
    for scores in (record, record["undefended"]):
        for attack in scores["attacks"].values():
            del attack["seconds"], attack["seconds_earlier"]
    return record


def test_evaluate_run_is_what_the_command_does(run: Path, cli: Cli) -> None:
    result = apd.evaluate_run(run, attacks="pgd-2", limit=4, device="cpu")
    assert (result.eps_text, result.norm, result.classes) == ("1/255", "linf", "all"), "the run's own"
    (kept,) = (run / "results").glob("summary-*.json")
    assert json.loads(kept.read_text()) == result.to_dict()
    assert "| pgd-2 |" in (run / "README.md").read_text()
    printed = cli("evaluate", run, "--attack", "pgd-2", "--limit", 4, "--device", "cpu", "--json")
    assert without_time(json.loads(printed.out)) == without_time(result.to_dict())


def test_evaluate_run_takes_other_data_and_settings(run: Path, tmp_path: Path) -> None:
    other = save_colours(tmp_path / "other", per_class=6, classes=("dark", "bright"))
    result = apd.evaluate_run(run, data=str(other), eps="3/255", norm="l2", **QUICK)
    assert (result.data, result.eps_text, result.norm) == ("other", "0.0117647", "l2")
    assert set(result.per_class) <= {"dark", "bright"}


def test_the_runs_own_budget_is_doubted_in_another_norm(run: Path, cli: Cli) -> None:
    attack = ("--attack", "pgd-1", "--limit", 4, "--device", "cpu", "--norm", "l2")
    wording = ("wording", run, "--change", "templates", "--attack", "pgd-1", "--limit", 4, "--norm", "l2")
    for line in (("evaluate", run, *attack), wording):
        assert "eps 1/255 within l2" in cli(*line).err
        assert "within l2 is the length" not in cli(*line, "--eps", "0.5").err


def test_a_training_doubts_a_budget_of_linf_in_another_norm(
    cli: Cli, colours: Path, shallow_folder: Path, tmp_path: Path
) -> None:
    line = ("train", colours, "--model", shallow_folder, *SHORT, "--set", "train.norm=l2")
    assert "eps 1/255 within l2" in cli(*line, "--output", tmp_path / "a").err
    assert "within l2 is the length" not in cli(*line, "--eps", "0.5", "--output", tmp_path / "b").err


@pytest.mark.parametrize(
    ("setting", "known"), [({"atacks": "pgd-1"}, "attacks"), ({"devise": "cpu"}, "device"), ({"dat": "x"}, "data")]
)
def test_evaluate_run_names_the_nearest_setting(run: Path, setting: dict[str, Any], known: str) -> None:
    with refused(*setting, meant(known)):
        apd.evaluate_run(run, **setting)


@pytest.mark.parametrize(
    "judge",
    [
        partial(apd.evaluate_run, **QUICK),
        partial(apd.certify_run, sigma=0.2, n0=4, n=28, limit=2, quiet=True),
        partial(apd.evaluate_run_wording, changes=["templates"], limit=2, quiet=True),
        partial(apd.calibrate_run, quiet=True),
    ],
    ids=["evaluate", "certify", "wording", "calibrate"],
)
def test_a_quiet_call_says_nothing_of_the_data_either(
    run: Path, judge: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    own, log = DataSettings.load, get_logger("apd.data")

    def warning(settings: DataSettings, *arguments: Any) -> Dataset:
        log.warning("these images may be seen ones")
        return own(settings, *arguments)

    with patch.object(DataSettings, "load", warning):
        judge(run)
    assert caplog.messages == []


def test_evaluate_run_refuses_what_is_not_a_run(colours: Path) -> None:
    with refused(str(colours), "run.json"):
        apd.evaluate_run(colours)


def test_validation_images_drawn_anew_are_not_taken_for_unseen(
    clip_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A data set without validation images of its own holds out some of its training images, others in each draw."""
    for split, count in (("train", 8), ("test", 2)):
        save_colours(tmp_path / "data" / split, per_class=count)
    own = apd.load_data(tmp_path / "data", shots=5)
    again = apd.load_data(tmp_path / "data", shots=1, seed=5, validation=4)
    seen = len({*own.train.ids} & {*again.val.ids})
    quick: Any = {"epochs": 1, "attack": {"kind": "pgd", "steps": 1}, "device": "cpu", "quiet": True}
    run = apd.train(clip_folder, own, method="advvlp", output=tmp_path / "run", **quick)
    told = f"{seen} of the {len(again.val)}"
    clean: Any = {"attacks": "clean", "device": "cpu"}
    for data, split, warned in ((again, "val", True), (again, "test", False), (own, "val", False)):
        caplog.clear()
        apd.evaluate_run(run.path, data=data, split=split, **clean)
        assert any(told in message for message in caplog.messages) == warned
    with refused(told, "not seen", str(run.path)):
        apd.calibrate_run(run.path, data=again)
    assert apd.calibrate_run(run.path, data=own).images == len(own.val)
