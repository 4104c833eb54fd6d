"""A run says which other CLIPs taught it and what its method has found out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import apd
from apd.data import load_data
from apd.models import DualEncoder, load_clip
from apd.runs.folder import Run

from .models import save_clip
from .refusals import refused

FAST = {"epochs": 1, "batch_size": 16, "device": "cpu"}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """Another random CLIP on disk."""
    return save_clip(tmp_path / "teacher", seed=5)


def train(clip: DualEncoder, colours: Path, output: Path, *, resume: bool = False, **method: Any) -> Run:
    data = load_data(colours, shots=4, seed=0)
    return apd.train(clip, data, method={"name": "apd", **method}, output=output, resume=resume, **FAST)


def card(run: Run) -> str:
    return (run.path / "README.md").read_text()


def test_the_teacher_and_the_measured_balance_are_in_manifest_and_card(
    tmp_path: Path, clip: DualEncoder, colours: Path, teacher: Path
) -> None:
    run = train(clip, colours, tmp_path / "run", teacher="frozen", teacher_model=str(teacher))
    other = load_clip(teacher)
    images = load_data(colours, shots=4, seed=0).train.decode(other.info.preprocessing)
    x = torch.stack([images.pixels(torch.tensor([i]))[0] for i in range(len(images))])
    guesses = apd.PromptedCLIP(other, None, run.manifest["class_names"], run.manifest["templates"])(x).argmax(dim=1)
    share = sum(int(a == b) for a, b in zip(guesses.tolist(), images.labels.tolist(), strict=True)) / len(images)

    record = Run.open(run.path).manifest
    assert record["facts"] == {"balance": pytest.approx(share, abs=1e-6)}
    assert record["teachers"].keys() == {"teacher_model"}
    about = record["teachers"]["teacher_model"]
    assert (about["source"], about["weights_sha256"]) == (str(teacher), other.info.weights_sha256)
    assert about["weights_sha256"] != record["model"]["weights_sha256"]
    (row,) = [line for line in card(run).splitlines() if line.startswith("| teacher model |")]
    assert str(teacher) in row and other.info.weights_sha256 in row
    assert f"| balance | {record['facts']['balance']:.4g} |" in card(run)


def test_who_had_no_other_teacher_and_no_balance_says_so(tmp_path: Path, clip: DualEncoder, colours: Path) -> None:
    run = train(clip, colours, tmp_path / "run", teacher="frozen", adv_kl=1.0)
    assert (run.manifest["teachers"], run.manifest["facts"]) == ({}, {})
    assert "| teacher model |" not in card(run) and "| balance |" not in card(run)


def test_resume_refuses_a_teacher_whose_weights_changed(
    tmp_path: Path, clip: DualEncoder, colours: Path, teacher: Path
) -> None:
    asked = {"variant": "mtard", "robust_teacher": str(teacher)}
    run = train(clip, colours, tmp_path / "run", **asked)
    assert train(clip, colours, run.path, resume=True, **asked).finished
    save_clip(teacher, seed=6)
    with refused("teachers.robust_teacher.weights_sha256", "--overwrite"):
        train(clip, colours, run.path, resume=True, **asked)


def test_a_run_of_before_they_were_kept_stays_readable(
    tmp_path: Path, clip: DualEncoder, colours: Path, teacher: Path
) -> None:
    run = train(clip, colours, tmp_path / "run", teacher_model=str(teacher))
    old = {key: value for key, value in run.manifest.items() if key not in ("teachers", "facts")}
    (run.path / "run.json").write_text(json.dumps(old))
    again = train(clip, colours, run.path, resume=True, teacher_model=str(teacher))
    assert again.manifest == old
    result = apd.evaluate(apd.load_run(run.path), load_data(colours, shots=4), attacks=["clean"], limit=6, quiet=True)
    again.save_result(result.to_dict())
    assert "| teacher model |" not in card(run) and "| val clean |" in card(run)
