"""What a run survives: damaged checkpoints, numbers that are not finite, folders that vanish, and what killed processes leave."""

from __future__ import annotations

import itertools
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from apd.errors import ApdError
from apd.evaluation import evaluate_run, run_folder
from apd.evaluation.store import Record
from apd.models import DualEncoder
from apd.runs.config import RunConfig
from apd.runs.folder import Run
from apd.training import loop
from apd.util.files import write_atomic
from apd.util.locks import LOCK, FolderLock, tidy
from apd.util.progress import Count

from .command_line import Said
from .refusals import contains, refused
from .training import metrics, same, start, weights


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_bit(content: bytes) -> bytes:
    """In the last tensor, where the header does not show it."""
    return content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]


def flip_a_digit(content: bytes) -> bytes:
    """In the record of the step."""
    return content.replace(b'\\"step\\": 2', b'\\"step\\": 3')


@pytest.mark.parametrize("damage", [cut, flip_a_bit, flip_a_digit, lambda _: b""])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path,
    config: RunConfig,
    manifest: dict[str, Any],
    said: Said,
    damage: Callable[[bytes], bytes],
) -> None:
    run = Run.create(tmp_path / "run", config, manifest)
    for step in (1, 2):
        run.log({"step": step})
        run.save_checkpoint(step, weights(step), {"best": step})
    run.lock.release()
    file = run.path / "checkpoint" / "state.safetensors"
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    assert Run.open(run.path, finished=False).steps_kept == 1

    resumed = Run.create(run.path, config, manifest, resume=True)
    found = resumed.load_checkpoint()
    assert found is not None and same(found[0], weights(1)) and found[1] == {"step": 1, "best": 1}
    assert [row["step"] for row in metrics(resumed)] == [1]
    assert contains(said()[-1], str(file))
    resumed.save_checkpoint(2, weights(2), {"best": 2})
    assert resumed.steps_kept == 2
    previous = file.with_name("previous.safetensors")
    file.write_bytes(b"")
    assert resumed.steps_kept == 1, "the damaged one has not taken its place"
    previous.write_bytes(b"")
    with refused("state.safetensors", "--overwrite"):
        Run.open(run.path, finished=False).load_checkpoint()


def test_a_kill_between_two_checkpoints_leaves_the_first(
    tmp_path: Path, config: RunConfig, manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run", config, manifest)
    run.save_checkpoint(1, weights(1), {})
    replace = os.replace

    def once(source: Path, target: Path) -> None:
        if Path(target).name == "state.safetensors":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("apd.util.files.os.replace", once)
        run.save_checkpoint(2, weights(2), {})
    assert Run.open(run.path, finished=False).steps_kept == 1


def test_a_training_whose_last_checkpoint_is_damaged_ends_bit_identical(
    tmp_path: Path, shallow: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, log = start(tmp_path / "whole", shallow, colours), Run.log

    def crash(self: Run, record: dict[str, float]) -> None:
        log(self, record)
        if record["step"] == 5:
            raise RuntimeError("power cut")

    monkeypatch.setattr(Run, "log", crash)
    with pytest.raises(RuntimeError):
        start(tmp_path / "broken", shallow, colours)
    monkeypatch.undo()
    file = tmp_path / "broken" / "checkpoint" / "state.safetensors"
    file.write_bytes(cut(file.read_bytes()))
    resumed = start(tmp_path / "broken", shallow, colours, resume=True)
    assert same(whole.load_prompts(), resumed.load_prompts())
    assert (whole.path / "prompts.safetensors").read_bytes() == (resumed.path / "prompts.safetensors").read_bytes()
    assert sorted(file.name for file in resumed.path.iterdir()) == sorted(file.name for file in whole.path.iterdir())


NAN_AT = 5


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_numbers_that_are_not_finite_stop_training_at_the_last_good_step(
    tmp_path: Path, shallow: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Between two logs and two checkpoints, where nobody looks."""
    rare = ("train.log_every=99", "train.checkpoint_every=99", "method=vlp")
    kept: dict[int, dict[str, torch.Tensor]] = {}
    take = loop.Loop.train_batch

    def remember(self: loop.Loop, module: Any, optimizer: Any, step: int, done: int) -> Any:
        terms = take(self, module, optimizer, step, done)
        kept[done] = {name: tensor.clone() for name, tensor in self.method.student.prompts.state_dict().items()}
        return terms

    def spoil(self: Any, step: Any, x_adv: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = step.cross_entropy(step.clean_logits())
        if len(kept) == NAN_AT - 1:
            # The root of 0 is finite, and its gradient is not.
            loss = loss * math.nan if kind == "loss" else loss + ((loss - loss.detach()) ** 2).sqrt()
        return {"clean_ce": loss}

    monkeypatch.setattr(loop.Loop, "train_batch", remember)
    monkeypatch.setattr("apd.methods.clean.CleanTuning.loss", spoil)
    names = ("clean_ce", "nan") if kind == "loss" else ("student.prompts",)
    with refused(*names, str(NAN_AT), str(NAN_AT - 1), str(tmp_path / "run"), by=ApdError) as told:
        start(tmp_path / "run", shallow, colours, *rare)
    assert told.value.exit_code == 1  # type: ignore[attr-defined]
    found = Run.open(tmp_path / "run", finished=False).load_checkpoint()
    assert found is not None and found[1]["step"] == NAN_AT - 1
    for name, tensor in kept[NAN_AT - 1].items():
        assert torch.equal(found[0][f"method.student.prompts.{name}"], tensor)


def test_prompts_that_are_not_finite_are_never_saved(
    tmp_path: Path, shallow: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = loop.Loop.train_batch

    def spoil(self: loop.Loop, module: Any, optimizer: Any, step: int, done: int) -> Any:
        terms = take(self, module, optimizer, step, done)
        if done == 4:
            with torch.no_grad():
                self.trained[0].fill_(math.inf)
        return terms

    monkeypatch.setattr(loop.Loop, "train_batch", spoil)
    with refused("student.prompts", "4", by=ApdError):
        start(tmp_path / "run", shallow, colours, "method=vlp", "train.validate_every=99")
    assert Run.open(tmp_path / "run", finished=False).steps_kept == 2


def test_a_folder_that_vanishes_stops_the_run_and_is_not_made_anew(
    tmp_path: Path, config: RunConfig, manifest: dict[str, Any]
) -> None:
    run = Run.create(tmp_path / "run", config, manifest)
    run.save_checkpoint(1, weights(1), {})
    shutil.move(run.path, tmp_path / "away")
    for write in (
        lambda: run.save_checkpoint(2, weights(2), {}),
        lambda: run.log({"step": 2}),
        lambda: run.save_prompts({}),
        lambda: run.finish({}),
    ):
        with refused(str(run.path), "--resume", by=ApdError) as told:
            write()
        assert told.value.exit_code == 1  # type: ignore[attr-defined]
        assert not run.path.exists()
    run.lock.release()
    shutil.move(tmp_path / "away", run.path)
    resumed = Run.create(run.path, config, manifest, resume=True)
    assert resumed.steps_kept == 1


@pytest.mark.parametrize("when", ["clean", "pgd-1", "end"])
def test_a_folder_that_vanishes_stops_an_evaluation(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    add, keep = Record.add, run_folder.save

    def gone() -> None:
        if run.exists():
            shutil.move(run, tmp_path / "away")

    def vanish(self: Record, *arguments: Any, **more: Any) -> None:
        add(self, *arguments, **more)
        if self.circumstances["attack"] == when:
            gone()

    def save(*arguments: Any) -> Any:
        gone()
        return keep(*arguments)

    options: Any = {
        "attacks": ["pgd-1"],
        "limit": 4,
        "batch_size": 2,
        "checks": False,
        "control": False,
        "device": "cpu",
    }
    with monkeypatch.context() as patch, refused(str(run), by=ApdError):
        patch.setattr(Record, "add", vanish)
        patch.setattr(run_folder, "save", save)
        evaluate_run(run, quiet=True, **options)
    assert not run.exists()
    shutil.move(tmp_path / "away", run)
    assert evaluate_run(run, quiet=True, **options).n == 4


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(
    tmp_path: Path, config: RunConfig, manifest: dict[str, Any]
) -> None:
    run = Run.create(tmp_path / "run", config, manifest)
    run.save_checkpoint(1, weights(1), {})
    run.lock.release()
    before = sorted(run.path.rglob("*"))
    for name in ("checkpoint/.state.safetensors.123.tmp", "results/.clean.json.7.tmp"):
        write_atomic(run.path / name, b"half")
    mine = ["notes.tmp", ".notes.tmp", ".swap.12.tmp.bak"]
    for name in mine:
        (run.path / name).write_text("mine")
    Run.create(run.path, config, manifest, resume=True).lock.release()
    after = sorted(path for path in run.path.rglob("*") if path.name != "results")
    assert after == sorted([*before, *(run.path / name for name in mine)])
    tidy(tmp_path / "nothing")


def test_leftovers_of_a_finished_run_are_removed_by_what_comes_next(
    tmp_path: Path, finished: Run, run: Path, config: RunConfig, manifest: dict[str, Any]
) -> None:
    before = sorted(finished.path.rglob("*"))
    (finished.path / "checkpoint").mkdir()
    (finished.path / LOCK).touch()
    Run.create(finished.path, config, manifest, resume=True)
    assert sorted(finished.path.rglob("*")) == before

    bench = tmp_path / "bench"
    for name in ("held", "stale"):
        (bench / name).mkdir(parents=True)
        (bench / name / LOCK).touch()
    lock = FolderLock(bench / "held")
    for name in ("held", "stale"):
        write_atomic(bench / name / ".run.json.7.tmp", "half a file")
    with lock.held():
        tidy(bench)
        assert [file.parent.name for file in bench.rglob(".*.tmp")] == ["held"], "somebody is writing it"
        assert [file.parent.name for file in bench.rglob(LOCK)] == ["held"]
    (run / ".README.md.7.tmp").write_text("half a card")
    evaluate_run(run, attacks=["clean"], limit=2, checks=False, quiet=True, device="cpu")
    assert not list(run.rglob(".*"))


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, shallow: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the wall runs backwards by a day with each look, and the files are of the future."""
    whole, log = start(tmp_path / "whole", shallow, colours), Run.log
    days = itertools.count()
    monkeypatch.setattr("time.time", lambda: 1e9 - 86400.0 * next(days))

    def crash(self: Run, record: dict[str, float]) -> None:
        log(self, record)
        if record["step"] == 3:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(Run, "log", crash)
        start(tmp_path / "broken", shallow, colours)
    for file in (tmp_path / "broken").rglob("*"):
        os.utime(file, (4e9, 4e9))
    resumed = start(tmp_path / "broken", shallow, colours, resume=True)
    assert (resumed.path / "prompts.safetensors").read_bytes() == (whole.path / "prompts.safetensors").read_bytes()
    assert 0 <= resumed.manifest["seconds"] < 600


def test_times_that_run_backwards_are_no_forecast() -> None:
    now = [100.0]
    count = Count(10, "steps", now=lambda: now[0])
    now[0] = 40.0
    count.advance(3)
    assert count.left() == "" and str(count).startswith("3 of 10 steps, 0 s")
