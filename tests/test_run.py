"""The run folder: whole or not at all, and only ever gone on with as it was begun."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import apd
from apd.errors import InputError
from apd.runs.config import RunConfig, load_config
from apd.runs.folder import Run
from apd.runs.output import FORMAT, check_output, clear
from apd.training.log import Log
from apd.util.files import write_atomic
from apd.util.locks import LOCK

from .refusals import fail_with, refused
from .runs import NAMES
from .test_files import watch_the_disk


def content(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != LOCK]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_a_new_run_touches_nothing_before_it_saves(tmp_path: Path, config: RunConfig, manifest: dict[str, Any]) -> None:
    run = Run.create(tmp_path / "run", config, manifest)
    assert not run.path.exists()
    assert run.load_checkpoint() is None
    run.save_checkpoint(0, {"a": torch.zeros(2)}, {})
    assert set(content(run.path)) == {"config.yaml", "run.json", "checkpoint/state.safetensors"}
    assert Run.open(run.path, finished=False).config == config
    with refused(f"apd train --output {run.path} --resume"):
        Run.open(run.path)


def test_the_metrics_are_on_the_disk_before_what_counts_them(
    tmp_path: Path, config: RunConfig, manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run", config, manifest)
    done = watch_the_disk(monkeypatch)
    run.log({"step": 1})
    assert ("synchronised", "metrics.jsonl") not in done, "not every line is waited for"
    done.clear()
    run.save_checkpoint(1, {"a": torch.zeros(2)}, {})
    saved = done.index(("renamed", "state.safetensors"))
    assert done.index(("synchronised", "metrics.jsonl")) < done.index(("synchronised", "run")) < saved
    run.log({"step": 2})
    run.save_prompts({"a": torch.zeros(2)})
    done.clear()
    run.finish({})
    assert done.index(("synchronised", "metrics.jsonl")) < done.index(("renamed", "run.json"))


@pytest.mark.parametrize("written", [0, 1])
def test_a_run_that_is_cut_off_while_it_is_made_is_resumed(
    tmp_path: Path, config: RunConfig, manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    files: list[str] = []

    def write(path: Path, content: str) -> None:
        if len(files) == written:
            raise RuntimeError("power cut")
        files.append(path.name)
        write_atomic(path, content)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr("apd.runs.folder.write_atomic", write)
        Run.create(tmp_path / "run", config, manifest).log({"step": 1})
    if files:
        with refused("--resume"):
            Run.create(tmp_path / "run", config, manifest)
    run = Run.create(tmp_path / "run", config, manifest, resume=True)
    run.log({"step": 1})
    assert Run.open(run.path, finished=False).config == config
    assert set(content(run.path)) == {"config.yaml", "run.json", "metrics.jsonl"}


def test_settings_that_a_person_wrote_are_not_taken_for_a_run(
    tmp_path: Path, config: RunConfig, manifest: dict[str, Any]
) -> None:
    (tmp_path / "config.yaml").write_text(f"# mine\n{config.to_yaml()}")
    for switch in ({}, {"resume": True}, {"overwrite": True}):
        with refused("(config.yaml)", "--output"):
            Run.create(tmp_path, config, manifest, **switch)


def test_overwrite_keeps_finished_work_until_there_is_new(
    finished: Run, config: RunConfig, manifest: dict[str, Any]
) -> None:
    before = content(finished.path)
    with refused(str(finished.path), "--overwrite", "overwrite=True"):
        Run.create(finished.path, config, manifest)
    new = Run.create(finished.path, config, manifest, overwrite=True)
    assert content(finished.path) == before
    assert new.load_checkpoint() is None
    new.log({"step": 1})
    assert set(content(finished.path)) == {"config.yaml", "run.json", "metrics.jsonl"}


def test_checkpoint_returns_what_was_saved_to_the_bit(
    tmp_path: Path, config: RunConfig, manifest: dict[str, Any]
) -> None:
    run = Run.create(tmp_path / "run", config, manifest)
    shared = torch.randn(3, 4)
    tensors = {
        "f32": shared,
        "view": shared.T,
        "bf16": torch.randn(5).bfloat16(),
        "step": torch.tensor(7),
        "none": torch.empty(0),
    }
    run.save_checkpoint(12, tensors, {"loss": 0.1 + 0.2, "names": ["a"]})
    found = Run.open(run.path, finished=False).load_checkpoint()
    assert found is not None
    loaded, state = found
    assert state == {"step": 12, "loss": 0.1 + 0.2, "names": ["a"]}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_resumed_metrics_equal_uninterrupted_ones(tmp_path: Path, config: RunConfig, manifest: dict[str, Any]) -> None:
    def work(run: Run, first: int, last: int) -> None:
        for step in range(first, last):
            run.log({"step": step, "loss": 1 / (step + 1)})
            if step % 4 == 3:
                run.save_checkpoint(step + 1, {"w": torch.tensor(float(step))}, {})

    whole = Run.create(tmp_path / "whole", config, manifest)
    work(whole, 0, 12)
    stopped = Run.create(tmp_path / "stopped", config, manifest)
    work(stopped, 0, 10)
    with open(stopped.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 10, "lo')  # killed in the middle of a line
    resumed = Run.create(stopped.path, config, manifest, resume=True)
    found = resumed.load_checkpoint()
    assert found is not None
    assert found[1]["step"] == 8
    work(resumed, 8, 12)
    assert content(resumed.path)["metrics.jsonl"] == content(whole.path)["metrics.jsonl"]


def test_seconds_are_of_all_starts_up_to_their_checkpoints(
    tmp_path: Path, config: RunConfig, manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("apd.runs.folder.time", SimpleNamespace(monotonic=lambda: now))
    tensors = {"prompts": torch.zeros(1)}
    run = Run.create(tmp_path / "run", config, manifest)
    now += 10
    run.save_checkpoint(1, tensors, {})
    now += 500  # killed, and started again much later
    run = Run.create(tmp_path / "run", config, manifest, resume=True)
    now += 5
    run.save_checkpoint(2, tensors, {})
    Log(run, 1).terms({"adv_ce": torch.tensor(1.0)}, 2)
    assert json.loads((run.path / "metrics.jsonl").read_text())["seconds"] == 10 + 5
    now += 500
    run = Run.create(tmp_path / "run", config, manifest, resume=True)
    now += 7
    run.save_prompts(tensors)
    run.finish({})
    assert Run.open(tmp_path / "run").manifest["seconds"] == 10 + 5 + 7


def test_a_finished_run_needs_no_checkpoint_and_keeps_none(
    tmp_path: Path, config: RunConfig, manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"prompts": torch.zeros(1)}
    run = Run.create(tmp_path / "run", config, manifest)
    run.save_prompts(tensors)
    run.save_checkpoint(1, tensors, {})
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_save_manifest", fail_with(errno.ENOSPC))  # not done until run.json says so
        with refused(os.strerror(errno.ENOSPC), by=OSError):
            run.finish({})
    resumed = Run.create(run.path, config, manifest, resume=True)
    assert not resumed.finished and resumed.load_checkpoint() is not None
    resumed.finish({})
    assert set(content(run.path)) == {"config.yaml", "run.json", "prompts.safetensors", "README.md"}
    assert Run.create(run.path, config, manifest, resume=True).finished


def test_metrics_are_json_whatever_the_numbers(tmp_path: Path, config: RunConfig, manifest: dict[str, Any]) -> None:
    run = Run.create(tmp_path / "run", config, manifest)
    run.log({"step": 1, "loss": float("nan"), "norm": float("inf")})
    line = (run.path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name)) == {"step": 1, "loss": None, "norm": None}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_half_written_checkpoint_is_named(
    tmp_path: Path, config: RunConfig, manifest: dict[str, Any], share: float
) -> None:
    run = Run.create(tmp_path / "run", config, manifest)
    run.save_checkpoint(1, {"w": torch.randn(100)}, {})
    file = run.path / "checkpoint" / "state.safetensors"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with refused("state.safetensors", "--overwrite"):
        Run.create(run.path, config, manifest, resume=True)
    with refused("state.safetensors"):
        Run.open(run.path, finished=False).load_checkpoint()


def test_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, config: RunConfig, manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run", config, manifest)
    run.save_checkpoint(1, {"w": torch.ones(3)}, {})
    before = content(run.path)
    with monkeypatch.context() as patch, refused("state.safetensors", os.strerror(errno.ENOSPC), "--resume"):
        patch.setattr("apd.util.files.os.fsync", fail_with(errno.ENOSPC))
        run.save_checkpoint(2, {"w": torch.zeros(3)}, {})
    assert content(run.path) == before, "no temporary file is left, and the old checkpoint is whole"
    with monkeypatch.context() as patch, refused(os.strerror(errno.ENOSPC)):
        patch.setattr("apd.util.files.os.replace", fail_with(errno.ENOSPC))
        run.save_prompts({"w": torch.zeros(3)})
    assert content(run.path) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_disk_while_logging(tmp_path: Path, config: RunConfig, manifest: dict[str, Any]) -> None:
    run = Run.create(tmp_path / "run", config, manifest)
    run.log({"step": 1})
    (run.path / "metrics.jsonl").unlink()
    (run.path / "metrics.jsonl").symlink_to("/dev/full")
    with refused("metrics.jsonl", os.strerror(errno.ENOSPC)):
        run.log({"step": 2})


def test_output_is_checked_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with refused(str(tmp_path / "file")):
            check_output(place)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    with refused(str(tmp_path / "photos"), "cat.jpg", "--output"):
        check_output(tmp_path / "photos", overwrite=True)
    for name in ("README.md", "config.yaml", "results"):  # names of ours, but without a run they are a person's own
        (tmp_path / f"with-{name}" / name).mkdir(parents=True)
        for switch in ({}, {"overwrite": True}, {"resume": True}):
            with refused(f"with-{name}", f"({name})", "--output"):
                check_output(tmp_path / f"with-{name}", **switch)
    check_output(tmp_path / "deep" / "new")
    assert not (tmp_path / "deep").exists()
    with refused("--resume", "--overwrite"):
        check_output(tmp_path / "new", resume=True, overwrite=True)
    monkeypatch.setattr(tempfile, "TemporaryFile", fail_with(errno.EROFS))
    with refused(os.strerror(errno.EROFS)):
        check_output(tmp_path / "new")


def test_a_place_that_is_taken_says_how_to_resume_only_what_is_unfinished(
    tmp_path: Path, finished: Run, config: RunConfig, manifest: dict[str, Any]
) -> None:
    unfinished = Run.create(tmp_path / "half done", config, manifest)
    unfinished.log({"step": 1})
    with refused(f"apd train --output '{unfinished.path}' --resume", "resume=True", "--overwrite", "overwrite=True"):
        check_output(unfinished.path)
    with pytest.raises(InputError) as error:
        check_output(finished.path)
    assert "--overwrite" in str(error.value) and "resume" not in str(error.value)


def test_overwriting_leaves_what_a_link_leads_to(tmp_path: Path, config: RunConfig, manifest: dict[str, Any]) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    run = tmp_path / "run"
    run.mkdir()
    (run / "results").symlink_to(tmp_path / "elsewhere")
    clear(run)
    assert not (run / "results").exists() and (tmp_path / "elsewhere" / "file").exists()


def test_resume_refuses_other_settings_model_and_data(
    tmp_path: Path, config: RunConfig, manifest: dict[str, Any]
) -> None:
    whole, of_model = manifest, dict(manifest["model"])
    assert of_model.pop("architecture")  # of which runs of before say nothing
    manifest = {**whole, "model": of_model}
    run = Run.create(tmp_path / "run", config, manifest)
    run.save_checkpoint(1, {}, {})
    assert not Run.create(run.path, config, whole, resume=True).finished
    other = load_config(run.path / "config.yaml", {"train.epochs": 99})
    with refused("train.epochs=30", "99", "--overwrite"):
        Run.create(run.path, other, manifest, resume=True)
    with refused("class_names", "--overwrite"):
        Run.create(run.path, config, {**manifest, "class_names": NAMES[::-1]}, resume=True)
    with refused("model.weights_sha256", "--overwrite"):
        Run.create(run.path, config, {**manifest, "model": {**manifest["model"], "weights_sha256": "0"}}, resume=True)
    later = {**manifest, "model": {**manifest["model"], "revision": "1" * 40}}  # another commit of the same weights
    assert not Run.create(run.path, config, later, resume=True).finished
    elsewhere = load_config(run.path / "config.yaml", {"train.device": "cuda"})
    assert not Run.create(run.path, elsewhere, manifest, resume=True).finished


def test_only_the_first_process_writes(
    tmp_path: Path, finished: Run, config: RunConfig, manifest: dict[str, Any]
) -> None:
    before = content(finished.path)
    for path in (tmp_path / "new", finished.path):
        second = Run.create(path, config, manifest, overwrite=True, writer=False)
        assert second.load_checkpoint() is None
        second.log({"step": 1})
        second.save_checkpoint(1, {}, {})
        second.save_prompts({})
        second.finish({})
    assert not (tmp_path / "new").exists()
    assert content(finished.path) == before


def test_finished_run_is_returned_by_resume(finished: Run, config: RunConfig, manifest: dict[str, Any]) -> None:
    before = content(finished.path)
    assert Run.create(finished.path, config, manifest, resume=True).finished
    assert content(finished.path) == before


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (json.dumps({"format": FORMAT + 1, "status": "done", "versions": {}}), [str(FORMAT + 1), str(FORMAT)]),
        ('{"format": 1, "sta', []),
        ("[]", []),
        ("{}", []),
        (json.dumps({"format": FORMAT}), []),
    ],
)
def test_other_version_and_damage_are_refused(finished: Run, text: str, names: list[str]) -> None:
    (finished.path / "run.json").write_text(text)
    with refused("run.json", *names, "--overwrite"):
        Run.open(finished.path)
    with refused("run.json", *names, "--overwrite"):
        apd.load_run(finished.path)


def test_no_run_folder(tmp_path: Path) -> None:
    with refused(str(tmp_path / "nothing"), "apd train"):
        Run.open(tmp_path / "nothing")
    with refused(str(tmp_path), "run.json", "apd train"):
        Run.open(tmp_path)
