"""One process is one process unless a launcher's whole set of variables is there."""

from __future__ import annotations

from pathlib import Path

import pytest

import apd
from apd.models import DualEncoder
from apd.training.process import find_accelerator
from apd.util.processes import is_first_process

from .command_line import QUICK, Cli
from .refusals import check_error, refused

LAUNCHER = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
ALL = [*LAUNCHER, "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALL:
        monkeypatch.delenv(name, raising=False)


def setenv(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("given", "first"),
    [
        ({}, True),
        (LAUNCHER, True),
        ({**LAUNCHER, "RANK": "1"}, False),
        ({**LAUNCHER, "OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "node", "MASTER_PORT": "1"}, True),
        ({"PMI_SIZE": "1"}, True),
        ({"RANK": ""}, True),
    ],
)
def test_who_is_first(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], first: bool) -> None:
    setenv(monkeypatch, given)
    assert is_first_process() is first


def test_several_processes_need_a_folder(monkeypatch: pytest.MonkeyPatch, clip: DualEncoder, colours: Path) -> None:
    """Each made one of its own, and all but one were empty."""
    setenv(monkeypatch, LAUNCHER)
    with refused("Several processes", "output="):
        apd.train(clip, apd.load_data(colours, shots=1), method="advvlp", steps=1, quiet=True)


def test_gradients_are_those_of_one_batch_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert find_accelerator("cpu").gradient_accumulation_steps == 1


@pytest.mark.parametrize(
    "given",
    [
        {"RANK": "1"},
        {"LOCAL_RANK": "0"},
        {"WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node", "MASTER_PORT": "1"},
        {"OMPI_COMM_WORLD_SIZE": "4"},
        {**LAUNCHER, "RANK": "2"},
        {**LAUNCHER, "RANK": "x"},
    ],
)
def test_half_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    setenv(monkeypatch, given)
    name = next(iter(given))
    with refused(f"{name}={given[name]}", f"unset {name}"):
        is_first_process()


def test_a_rank_left_in_the_environment_never_trains_for_nothing(
    cli: Cli, clip_folder: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    answer = cli("train", colours, "--model", clip_folder, *QUICK, "--output", tmp_path / "run")
    check_error(answer, ["RANK=1", "unset RANK", "accelerate launch"])
