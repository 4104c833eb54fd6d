"""A training that was interrupted ends as if it had not been; two processes train as one."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor

from apd.models import DualEncoder
from apd.runs.differences import check_same, hash_of_labels
from apd.runs.folder import Run
from apd.training import loop
from apd.training.collapse import CollapseMonitor, Validation
from apd.training.log import Log

from .forked import FORKED
from .refusals import refused
from .training import keep_gradients, metrics, same, start, train_in_process


@pytest.mark.parametrize(
    "extra",
    [
        ("method.teacher=tuned", "train.ema=0.9"),
        ("method.teacher=online", "train.ema=0.9", "train.optimizer.name=sgd"),
        ("train.swa=0.7", "train.optimizer.sam=0.05", "train.eps_warmup_epochs=2"),
        ("method.name=advvlp", "train.optimizer.awp=0.01", "train.attack.kind=n-fgsm", "train.label_smoothing=0.1"),
        ("train.attack.loss=margin", "train.attack.stop_margin=0.5", "train.attack.steps=3"),
        ("train.attack.kind=free", "train.attack.replays=3", "train.epochs=4"),
        ("train.attack.kind=carried", "train.epochs=4"),
        ("method.teacher=tuned", "train.steps=5"),
        ("method.teacher=frozen", "method.prompts.experts=2", "train.ema=0.5"),
    ],
    ids=lambda extra: "-".join(part.split(".")[-1] for part in extra),
)
def test_an_interrupted_run_resumes_bit_identical(
    tmp_path: Path, shallow: DualEncoder, colours: Path, extra: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = start(tmp_path / "whole", shallow, colours, *extra)

    saves, log, save = [], Run.log, Run.save_checkpoint
    monkeypatch.setattr(Run, "save_checkpoint", lambda self, step, *rest: (saves.append(step), save(self, step, *rest)))

    def interrupt(self: Run, record: dict[str, float]) -> None:
        log(self, record)
        if record["step"] == 3 and "loss" in record:
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C in the middle of a step: answered at its end

    monkeypatch.setattr(Run, "log", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"^3 of \d+ steps are kept; .*broken', resume=True"):
        start(tmp_path / "broken", shallow, colours, *extra)
    assert saves == ([3] if "train.attack.kind=free" in extra else [1, 2, 3])
    monkeypatch.undo()
    resumed = start(tmp_path / "broken", shallow, colours, *extra, resume=True)
    assert same(whole.load_prompts(), resumed.load_prompts())
    assert resumed.manifest["facts"] == whole.manifest["facts"], "a balance that is measured once"
    without_time = [[{k: v for k, v in row.items() if k != "seconds"} for row in metrics(r)] for r in (whole, resumed)]
    assert without_time[0] == without_time[1]


def test_a_resumed_run_judges_a_collapse_by_the_terms_that_were_logged_before(
    tmp_path: Path, shallow: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A validation between two lines of metrics looks at the line before it, which an interruption may have come after."""
    extra = ("method.name=advvlp", "train.log_every=3", "train.checkpoint_every=1")
    seen: list[dict[str, float]] = []
    check, log = CollapseMonitor.check_validation, Run.log

    def look(self: CollapseMonitor, terms: dict[str, float], found: Validation) -> list[str]:
        seen.append(dict(terms))
        return check(self, terms, found)

    def interrupt(self: Run, record: dict[str, float]) -> None:
        log(self, record)
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(CollapseMonitor, "check_validation", look)
    start(tmp_path / "whole", shallow, colours, *extra)
    whole = seen.copy()
    assert [bool(terms) for terms in whole] == [True, True]  # at steps 4 and 6
    seen.clear()
    monkeypatch.setattr(Run, "log", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "broken", shallow, colours, *extra)
    monkeypatch.setattr(Run, "log", log)
    start(tmp_path / "broken", shallow, colours, *extra, resume=True)
    assert seen == whole


def test_a_crash_after_the_first_step_does_not_tune_the_teacher_twice(
    tmp_path: Path, shallow: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = ("method.teacher=tuned", "train.checkpoint_every=100")
    whole, log = start(tmp_path / "whole", shallow, colours, *extra), Run.log

    def crash(self: Run, record: dict[str, float]) -> None:
        log(self, record)
        if record["step"] == 2:
            raise RuntimeError("power cut")

    monkeypatch.setattr(Run, "log", crash)
    with pytest.raises(RuntimeError):
        start(tmp_path / "broken", shallow, colours, *extra)
    monkeypatch.undo()
    monkeypatch.setattr(loop.Loop, "tune", lambda *_: pytest.fail("tuned twice"))
    resumed = start(tmp_path / "broken", shallow, colours, *extra, resume=True)
    assert same(whole.load_prompts(), resumed.load_prompts())


def test_ctrl_c_in_the_last_step_of_the_teacher_is_not_lost(
    tmp_path: Path, shallow: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = Log.terms

    def interrupt(self: Log, values: dict[str, Tensor], done: int) -> dict[str, float]:
        if self.run is None and done == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return terms(self, values, done)

    monkeypatch.setattr(Log, "terms", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "run", shallow, colours, "method.teacher=tuned")
    assert not (tmp_path / "run").exists()


def test_killed_five_times_at_random_steps_it_ends_bit_identical(
    tmp_path: Path, shallow: DualEncoder, shallow_folder: Path, colours: Path
) -> None:
    """Killed by a clock of CPU time, which a machine under load does not change."""
    extra = ["train.epochs=15", "train.checkpoint_every=1", "train.validate_every=10", "method.teacher=online"]
    whole = start(tmp_path / "whole", shallow, colours, *extra)
    broken, rng = tmp_path / "broken", torch.Generator().manual_seed(0)
    arguments = (broken, shallow_folder, colours, extra)
    steps, killed_at = 30, []
    for number in range(5):
        low = steps * number // 6
        target = low + 1 + int(torch.randint(0, steps // 6 - 1, (), generator=rng))
        later = 0.001 + 0.03 * float(torch.rand((), generator=rng))
        process = FORKED.Process(target=train_in_process, args=(*arguments, (target, later)))
        process.start()
        process.join(timeout=300)
        assert process.exitcode == -signal.SIGPROF, "the run ended before it was killed"
        killed_at.append(_logged(broken))
    assert killed_at == sorted(killed_at) and killed_at[-1] < steps
    train_in_process(*arguments)
    assert same(whole.load_prompts(), Run.open(broken).load_prompts())


def _logged(path: Path) -> int:
    file = path / "metrics.jsonl"
    return file.read_bytes().count(b'"loss"') if file.exists() else 0


def _free_port() -> int:
    """A port below those that Linux gives to whoever asks for any, which would take it before it is used."""
    for port in range(20000 + os.getpid() % 10000, 32768):
        with suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def test_two_processes_give_the_gradients_of_one(tmp_path: Path, shallow_folder: Path, colours: Path) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    both = {**address, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    launchers = {"one": [{}], "two": [{**both, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]}
    processes = []
    for name, ranks in launchers.items():
        (tmp_path / name).mkdir()
        for launcher in ranks:
            arguments = (tmp_path / name, shallow_folder, colours, launcher)
            processes.append(FORKED.Process(target=keep_gradients, args=arguments, daemon=True))
            processes[-1].start()
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    one, left, right = (
        torch.load(tmp_path / name, weights_only=True)
        for name in ("one/gradients0.pt", "two/gradients0.pt", "two/gradients1.pt")
    )
    assert len(one) == len(left) == 6 + 6 + 6
    for single, a, b in zip(one, left, right, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, single, rtol=1e-3, atol=1e-6)


def test_a_run_is_not_resumed_with_other_labels(trained: Path) -> None:
    run = Run.open(trained)
    data = run.config.data.load(run.config.train.seed)
    known = {"data": dict(run.manifest["data"])}
    assert known["data"]["labels_sha256"] == hash_of_labels(data.train.labels.tolist(), data.val.labels.tolist())
    check_same(run.path, (run.config, run.config), (known, known))
    other = {"data": {**known["data"], "labels_sha256": hash_of_labels([0], [1])}}
    with refused(str(run.path), "other labels", "--overwrite"):
        check_same(run.path, (run.config, run.config), (known, other))
    older = {"data": {key: value for key, value in known["data"].items() if key != "labels_sha256"}}
    check_same(run.path, (run.config, run.config), (older, known))
