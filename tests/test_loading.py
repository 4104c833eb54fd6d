"""From a run folder back to a classifier: only on what it was trained on."""

from __future__ import annotations

import json
import re
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import apd
from apd.models import DualEncoder
from apd.models.prompts import Prompts
from apd.runs.config import RunConfig
from apd.runs.folder import Run
from apd.runs.load import hold_teacher

from .command_line import Said
from .models import save_clip
from .refusals import contains, refused
from .runs import NAMES, TEMPLATES


def test_load_run_gives_the_prompts_that_were_saved(finished: Run, clip: DualEncoder, config: RunConfig) -> None:
    classifier = apd.load_run(finished.path)
    prompts = Prompts.initial(config.method.settings.prompts, clip, seed=3, n_classes=len(NAMES))
    expected = apd.PromptedCLIP(clip, prompts, NAMES, TEMPLATES)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(classifier(x), expected.frozen()(x))
    assert not any(p.requires_grad for p in classifier.parameters())


def test_the_home_directory_stands_for_its_sign(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished.path, tmp_path / "one")
    assert apd.load_run("~/one").class_names == tuple(NAMES)
    shutil.copytree(finished.path, tmp_path / "other")
    assert apd.average_runs(["~/one", "~/other"], "~/mean").path == tmp_path / "mean"
    assert not (tmp_path / "~").exists()


def test_load_run_refuses_another_clip(finished: Run, tmp_path: Path) -> None:
    other = save_clip(tmp_path / "other", seed=1)
    with refused("weights_sha256", str(other), str(finished.path)):
        apd.load_run(finished.path, model=str(other))


@pytest.mark.parametrize(
    ("file", "setting"), [("preprocessor_config.json", "preprocessing"), ("tokenizer.json", "tokenizer_sha256")]
)
def test_load_run_refuses_changed_circumstances(
    finished: Run, clip_folder: Path, tmp_path: Path, file: str, setting: str
) -> None:
    moved = shutil.copytree(clip_folder, tmp_path / "moved")
    assert apd.load_run(finished.path, model=str(moved)).class_names == tuple(NAMES)
    text = (moved / file).read_text()
    changed = text.replace("0.48", "0.5") if file.startswith("pre") else text.replace('"piano"', '"viola"')
    assert changed != text
    (moved / file).write_text(changed)
    with refused(setting, str(moved), str(finished.path)):
        apd.load_run(finished.path, model=str(moved))


def test_load_run_refuses_the_same_weights_computed_in_another_way(
    finished: Run, clip_folder: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(clip_folder, tmp_path / "moved")
    text = (moved / "config.json").read_text()
    activation = re.search(r'"hidden_act": "(\w+)"', text)
    assert activation
    (moved / "config.json").write_text(text.replace(activation[1], "relu"))
    with refused("architecture", activation[1], "relu", str(moved)):
        apd.load_run(finished.path, model=str(moved))
    # A run of before does not say how its model was computed.
    manifest = finished.path / "run.json"
    record = json.loads(manifest.read_text())
    del record["model"]["architecture"]
    manifest.write_text(json.dumps(record))
    assert apd.load_run(finished.path, model=str(moved)).class_names == tuple(NAMES)


def test_a_siglip_without_a_head_is_refused_before_the_first_image(siglip_folder: Path, tmp_path: Path) -> None:
    headless = shutil.copytree(siglip_folder, tmp_path / "headless")
    config = json.loads((headless / "config.json").read_text())
    config["vision_config"]["vision_use_head"] = False
    (headless / "config.json").write_text(json.dumps(config))
    with refused("vision_use_head", str(headless)):
        apd.load_clip(headless)


def test_a_teacher_is_loaded_on_its_own_model_if_the_student_computes_in_another_way(
    finished: Run, clip: DualEncoder
) -> None:
    student = deepcopy(clip)
    student.info = replace(student.info, architecture="another")
    teacher, _ = hold_teacher(str(finished.path), student)
    assert teacher.encoder is not student
    assert hold_teacher(str(finished.path), clip)[0].encoder is clip


def test_settings_that_were_edited_after_training_are_noticed(finished: Run, said: Said) -> None:
    apd.load_run(finished.path)
    assert not said()
    file = finished.path / "config.yaml"
    text = file.read_text()
    file.write_bytes(text.replace("\n", "\r\n").encode())
    apd.load_run(finished.path)
    assert not said(), "other ends of lines leave the settings as they are"
    edited = re.sub(r"eps: \S+", "eps: 9/255", text, count=1)
    assert edited != text
    file.write_text(edited)
    apd.load_run(finished.path)
    assert len(said()) == 1 and contains(said()[0], str(file), "eps")


def test_exchanged_prompts_are_noticed(finished: Run) -> None:
    file = finished.path / "prompts.safetensors"
    tensors = load_file(file)
    Run.open(finished.path).save_prompts({name: tensor + 1 for name, tensor in tensors.items()})
    with refused(str(file), "run.json"):
        apd.load_run(finished.path)
    file.unlink()
    with refused(str(file)):
        apd.load_run(finished.path)
