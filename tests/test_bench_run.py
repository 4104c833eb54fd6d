"""`apd bench` end to end on a random CLIP and coloured squares: done once, gone on with, never stopped by a failure."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apd.bench import Machine, bench, load_suite, make_plan, runner, write_tables
from apd.bench.engines import run_local
from apd.bench.job import Report, attempt, do, outcome_file
from apd.bench.report.plots import write_plots
from apd.bench.report.tables import latex, make_tables
from apd.bench.runner import read_bench, tell_doubts
from apd.errors import InputError
from apd.util.extras import install_command

from .command_line import Said
from .models import save_colours
from .refusals import contains, fail_with, meant, refused
from .suites import Write, here, rights, table_rows

pytestmark = pytest.mark.usefixtures("short_checks")

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def test_a_suite_leaves_results_tables_and_plots_and_is_done_once(write: Write, tmp_path: Path, said: Said) -> None:
    suite = load_suite(write(final={"attacks": "pgd-3", "limit": 4, "best": 2}))
    machine = here()
    assert bench(suite, tmp_path / "out", machine=machine) == {}
    labels = ["zero-shot on colours"] + [
        f"{m} on colours, 2 shots, seed {s}" for m in ("advvlp", "vlp") for s in (0, 1)
    ]
    assert machine.__dict__["done"][:5] == labels
    assert contains(said()[0], "5", "0", "local", "cpu"), "runs to do and done, and by whom"
    assert contains(said()[-1], f"{tmp_path / 'out'}/results.csv", "results.parquet", "table.md", "table.tex", "plots")

    rows = table_rows(tmp_path / "out")
    assert ",".join(rows[0]) == "data,method,shots,seed,protocol,split,attack,eps,accuracy,n,seconds,run,reliable"
    first = [row for row in rows if row["split"] == "test"]
    assert len(first) == 5 * 3
    assert {(row["attack"], row["eps"], row["n"]) for row in first} == {
        ("clean", "0", "6"),
        ("pgd-2", "8/255", "6"),
        ("worst", "8/255", "6"),
    }
    final = [row for row in rows if row["split"] == "test-final"]
    assert len({row["method"] for row in final}) == 2 and {row["n"] for row in final} == {"4"}

    text = (tmp_path / "out" / "table.md").read_text()
    # Of one attack there is no worst.
    head = "| method | seeds | clean | pgd-2 | harmonic mean | pgd-3 (final) | harmonic mean (final) |"
    assert "### colours, 2 shots" in text and head in text
    assert "| zero-shot | any |" in text and "±" in text
    assert r"\textbf{" in (tmp_path / "out" / "table.tex").read_text()
    assert (tmp_path / "out" / "plots" / "few-shot-colours-2-shots.png").stat().st_size > 1000

    import pyarrow.parquet

    assert pyarrow.parquet.read_table(tmp_path / "out" / "results.parquet").num_rows == len(rows)

    again = here()
    assert bench(suite, tmp_path / "out", machine=again) == {}
    assert "done" not in again.__dict__
    assert (tmp_path / "out" / "table.md").read_text() == text


def test_a_grown_suite_shows_its_second_stage_until_there_is_another(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = {"attacks": "pgd-3", "limit": 4, "best": 2}
    block = {"protocol": "few-shot", "data": "colours", "methods": ["zero-shot", "vlp"], "seeds": [0]}
    assert bench(load_suite(write(final=final, blocks=[block])), tmp_path / "out", machine=here()) == {}
    block["seeds"] = [0, 1]
    monkeypatch.setattr(Machine, "run", fail_with(errno.EINTR))
    with pytest.raises(OSError):
        bench(load_suite(write(final=final, blocks=[block])), tmp_path / "out", machine=Machine("local", 1, 1, 0))
    assert "pgd-3 (final)" in write_tables(tmp_path / "out").read_text()
    with pytest.raises(OSError):
        bench(load_suite(write(blocks=[block])), tmp_path / "out", machine=Machine("local", 1, 1, 0))
    assert "(final)" not in write_tables(tmp_path / "out").read_text(), "the suite has none any more"


def test_tables_are_made_again_without_runs_model_and_data(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    block = {"protocol": "few-shot", "data": "colours", "methods": ["zero-shot", "vlp"]}
    bench(load_suite(write(blocks=[block])), tmp_path / "out", machine=here())
    kept = tmp_path / "kept"
    kept.mkdir()
    (tmp_path / "out" / "outcomes").rename(kept / "outcomes")
    (tmp_path / "out" / "plan.json").rename(kept / "plan.json")
    before = len(said())
    with monkeypatch.context() as patch:
        for module in ("rows", "plots"):
            patch.setattr(f"apd.bench.report.{module}.find_spec", lambda _: None)
        table = write_tables(kept)
    without_parquet, without_plots, written = said()[before:]
    assert contains(without_parquet, "results.parquet", install_command("parquet"))
    assert contains(without_plots, "plots", install_command("report"))
    assert contains(written, f"{kept}/results.csv", "table.md", "table.tex")
    assert not contains(written, "results.parquet") and not contains(written, "plots")
    assert table.read_text() == (tmp_path / "out" / "table.md").read_text()
    assert (kept / "results.csv").read_text() == (tmp_path / "out" / "results.csv").read_text()
    assert "difference to vlp" not in table.read_text()
    write_tables(kept, against="vlp")
    assert "difference to vlp" in table.read_text() and read_bench(kept)[0].against == "vlp"
    before_error = table.read_text()
    with refused("vlpp", "vlp"):
        write_tables(kept, against="vlpp")
    assert write_tables(kept).read_text() == before_error, "it stays"
    with refused(str(tmp_path / "elsewhere"), "plan.json", f"--output {tmp_path / 'elsewhere'}"):
        write_tables(tmp_path / "elsewhere")


def test_doubts_about_data_and_budget_are_told_once(
    write: Write, colours: Path, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(colours, tmp_path / "again" / "train")
    shutil.copytree(colours, tmp_path / "again" / "test")
    source = {"source": str(colours), "eps": "8/255", "shots": 2}
    data = {"colours": source, "others": {**source, "norm": "l2", "shots": 100}, "again": {**source, "source": "again"}}
    block = {"protocol": "few-shot", "data": [*data], "methods": ["zero-shot", "advvlp"], "seeds": [0, 1]}
    suite = load_suite(write(root=".", data=data, blocks=[block]))
    tell_doubts(make_plan(load_suite(write())))
    assert said() == []
    monkeypatch.setattr(runner, "_stages", lambda *_: ())
    monkeypatch.setattr(runner, "_write_tables", lambda _: None)
    bench(suite, tmp_path / "out", machine=here())
    budget, shortage, test, *validation = said()
    assert contains(shortage, "data.others", "100") and contains(budget, "data.others", "l2", "0.5")
    assert contains(test, "data.again", "test images", "copies") and not validation
    tell_doubts(make_plan(suite), done=[*make_plan(suite).jobs])
    assert len(said()) == 3


def test_machines_are_shared_out(monkeypatch: Any) -> None:
    from apd.bench import find_machine

    monkeypatch.setattr(runner, "_cores", lambda: 8)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert find_machine() == Machine("local", 1, 8, 0)
    assert find_machine(workers=3) == Machine("local", 3, 2, 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert find_machine(workers=3) == Machine("local", 3, 1, 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert find_machine() == Machine("local", 4, 1, 1.0)
    assert find_machine(gpus=0).device == "cpu"
    with refused("--gpus 2", "--engine ray", "--gpus 1"):
        find_machine(gpus=2)
    with refused("--gpus 5", "4"):
        find_machine(gpus=5)
    for workers in (0, -1):
        with refused(f"--workers {workers}"):
            find_machine(workers=workers)
    with refused("--gpus -1"):
        find_machine(gpus=-1)
    with refused("'rai'", meant("ray")):
        find_machine("rai")


def test_identity_is_of_settings_model_and_data_not_of_their_place(write: Write, tmp_path: Path, colours: Path) -> None:
    before = set(make_plan(load_suite(write())).jobs)
    moved = tmp_path / "moved"
    save_colours(moved)
    data = {"colours": {"source": str(moved), "eps": "8/255", "shots": 2}}
    assert set(make_plan(load_suite(write(data=data))).jobs) == before
    data["colours"]["eps"] = "4/255"
    other_eps = set(make_plan(load_suite(write(data=data))).jobs)
    assert len(other_eps & before) == 1  # zero-shot is not trained; only its evaluation differs
    other = tmp_path / "other"
    save_colours(other, per_class=13)
    data = {"colours": {"source": str(other), "eps": "8/255", "shots": 2}}
    assert not set(make_plan(load_suite(write(data=data))).jobs) & before


def test_blocks_share_a_training(write: Write) -> None:
    common = {"data": "colours", "methods": "advvlp"}
    blocks = [
        {"protocol": "few-shot", **common, "shots": [1, 2]},
        {"protocol": "eps-curve", **common, "eps": ["1/255", "8/255"]},
    ]
    plan = make_plan(load_suite(write(blocks=blocks)))
    assert len(plan.rows) == 3 and len(plan.jobs) == 2
    # 8/255 is the few-shot evaluation too.
    assert sorted(len(job.evals) for job in plan.jobs.values()) == [1, 2]


def test_one_failure_is_tried_again_and_stops_no_other(write: Write, tmp_path: Path, monkeypatch: Any) -> None:
    from apd.methods.adversarial import AdvVLP

    calls = []

    def broken(*_: object) -> Any:
        calls.append(1)
        raise RuntimeError("it broke")

    monkeypatch.setattr(AdvVLP, "loss", broken)
    suite = load_suite(write())
    failures = bench(suite, tmp_path / "out", machine=here())
    assert failures == {f"advvlp on colours, 2 shots, seed {seed}": "RuntimeError: it broke" for seed in (0, 1)}
    assert len(calls) == 6, "each: at first, going on, and afresh"
    assert {row["method"] for row in table_rows(tmp_path / "out")} == {"zero-shot", "vlp"}
    monkeypatch.undo()
    assert bench(suite, tmp_path / "out", machine=here()) == {}
    assert {row["method"] for row in table_rows(tmp_path / "out")} == {"zero-shot", "vlp", "advvlp"}


def test_a_damaged_checkpoint_is_trained_again(write: Write, tmp_path: Path) -> None:
    plan = make_plan(load_suite(write()))
    job = next(job for job in plan.jobs.values() if job.config is not None)
    whole = do(job, tmp_path / "whole")
    place = tmp_path / "out"
    do(job, place)
    outcome_file(place, job.id).unlink()
    run = place / "runs" / job.id / "run"
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**manifest, "status": "running"}))
    (run / "checkpoint").mkdir()
    (run / "checkpoint" / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError):
        do(job, place)
    report = attempt(job, place, 1)
    assert report.outcome is not None
    assert {k: v.right for k, v in report.outcome.evals.items()} == {k: v.right for k, v in whole.evals.items()}


def test_base_to_new_and_transfer_use_the_right_classes(write: Write, tmp_path: Path) -> None:
    names = ("red", "green", "blue", "dark")
    four = save_colours(tmp_path / "four", classes=names)
    same = save_colours(tmp_path / "same", classes=("blue", "red"))
    common = {"data": "four", "methods": ["zero-shot", "advvlp"]}
    suite = write(
        data={
            "four": {"source": str(four), "shots": 2, "eps": "8/255"},
            "same": {"source": str(same), "eps": "8/255", "templates": ["the digit {}"]},
        },
        blocks=[
            {"protocol": "base-to-new", **common},
            {"protocol": "cross-dataset", **common, "to": "same"},
            {"protocol": "domain-shift", **common, "to": "same"},
        ],
    )
    assert bench(load_suite(suite), tmp_path / "out", machine=here()) == {}
    splits = {(row["protocol"], row["split"]) for row in table_rows(tmp_path / "out")}
    assert splits == {
        ("base-to-new", "base"),
        ("base-to-new", "new"),
        *((protocol, split) for protocol in ("cross-dataset", "domain-shift") for split in ("test", "same")),
    }
    runs = {row["run"] for row in table_rows(tmp_path / "out") if row["method"] == "advvlp"}
    manifests = [json.loads((tmp_path / "out" / "runs" / run / "run" / "run.json").read_text()) for run in runs]
    assert sorted(len(manifest["class_names"]) for manifest in manifests) == [2, 4]
    assert "| H clean | H worst |" in (tmp_path / "out" / "table.md").read_text()


def test_another_norm_end_to_end(write: Write, colours: Path, tmp_path: Path) -> None:
    data = {"colours": {"source": str(colours), "eps": "0.5", "norm": "l2", "shots": 2}}
    block = {"protocol": "eps-curve", "data": "colours", "methods": "zero-shot", "eps": ["0.5", "3"]}
    assert bench(load_suite(write(data=data, blocks=[block])), tmp_path / "out", machine=here()) == {}
    assert {row["eps"] for row in table_rows(tmp_path / "out")} == {"0", "l2 0.5", "l2 3"}
    assert "| clean | eps l2 0.5 | eps l2 3 |" in (tmp_path / "out" / "table.md").read_text()
    records = list((tmp_path / "out" / "runs").glob("*/results/*pgd-2*.jsonl"))
    norms = {json.loads(file.read_text().splitlines()[0])["circumstances"]["norm"] for file in records}
    assert norms == {"l2"}
    assert (tmp_path / "out" / "plots" / "eps-curve-colours-2-shots.png").exists()


def test_budgets_corruptions_and_teachers_end_to_end(write: Write, tmp_path: Path) -> None:
    common = {"data": "colours", "methods": ["zero-shot", "apd"]}
    suite = write(
        methods={"zero-shot": None, "apd": "apd", "tuned": {"name": "apd", "teacher": "tuned"}},
        blocks=[
            {"protocol": "eps-curve", **common, "eps": ["0", "8/255", "64/255"]},
            {"protocol": "corruption", **common, "corruptions": ["fog", "gaussian_noise"], "severity": 5},
            {"protocol": "teacher-study", "data": "colours", "methods": ["zero-shot", "apd", "tuned"]},
        ],
    )
    assert bench(load_suite(suite), tmp_path / "out", machine=here()) == {}
    rows = table_rows(tmp_path / "out")
    assert len({row["run"] for row in rows}) == 3, "all protocols share the trainings"
    curve = {(row["method"], row["eps"]): float(row["accuracy"]) for row in rows if row["protocol"] == "eps-curve"}
    assert {eps for _, eps in curve} == {"0", "8/255", "64/255"}
    assert [row["method"] for row in rows if (row["protocol"], row["attack"]) == ("eps-curve", "clean")] == common[
        "methods"
    ]
    corrupted = {row["split"] for row in rows if row["protocol"] == "corruption"}
    assert corrupted == {"test", "fog-5", "gaussian_noise-5"}
    assert {row["method"] for row in rows if row["protocol"] == "teacher-study"} == {"zero-shot", "apd", "tuned"}
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| method | seeds | clean | eps 0 | eps 8/255 | eps 64/255 | mean worst |" in text
    noise = "gaussian_noise-5 clean | gaussian_noise-5 worst | mean clean | mean worst |"
    assert f"| method | seeds | test clean | test worst | fog-5 clean | fog-5 worst | {noise}" in text
    assert (tmp_path / "out" / "plots" / "eps-curve-colours-2-shots.png").exists()
    # Within a budget of nothing, an attack finds what is there without one.
    table = text.split("## eps-curve")[1].split("## corruption")[0]
    line = (
        next(line for line in table.splitlines() if line.startswith("| apd |"))
        .replace("*", "")
        .replace("†", "")
        .split(" | ")
    )
    assert line[2] == line[3]


@pytest.mark.slow
def test_workers_do_what_this_process_does_and_a_killed_one_is_replaced(write: Write, tmp_path: Path) -> None:
    plan = make_plan(load_suite(write()))
    jobs = [job for job in plan.jobs.values() if job.config is not None][:2]
    expected = {job.id: do(job, tmp_path / "here") for job in jobs}
    # Long enough to be met at work.
    killed, found = set[int](), dict[str, Report]()
    reports = run_local(jobs, tmp_path / "out", workers=1, threads=1)
    stop = _kill_once(tmp_path / "out", killed)
    for report in reports:
        found[report.job] = report
    stop()
    assert killed and found.keys() == expected.keys()
    for job, report in found.items():
        assert report.outcome is not None, report.error
        assert {k: v.right for k, v in report.outcome.evals.items()} == {
            k: v.right for k, v in expected[job].evals.items()
        }


def _kill_once(folder: Path, killed: set[int]) -> Callable[[], None]:
    """Kill the first worker process as soon as it has begun a run."""
    import multiprocessing
    import threading

    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if any(folder.glob("runs/*/run/run.json")):
                for child in multiprocessing.active_children():
                    os.kill(child.pid or 0, signal.SIGKILL)
                    killed.add(child.pid or 0)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()

    def stop() -> None:
        over.set()
        thread.join()

    return stop


def test_a_job_that_kills_every_worker_fails(write: Write, tmp_path: Path, monkeypatch: Any) -> None:
    from apd.bench import engines

    monkeypatch.setattr(engines, "_serve", print)  # ends without a report, and imports nothing
    (job, *_) = make_plan(load_suite(write())).jobs.values()
    (report,) = run_local([job], tmp_path, workers=1, threads=1, deaths=2)
    assert report.outcome is None and report.error is not None and contains(report.error, "2")


@pytest.mark.slow
def test_killed_and_started_again_ends_with_the_same_table(write: Write, tmp_path: Path) -> None:
    """In processes of their own, whose health checks are whole, all three."""
    whole, folder = tmp_path / "whole", tmp_path / "out"
    command = [sys.executable, "-m", "apd", "bench", str(write()), "--workers", "1", "--output", str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([*command[:-1], str(whole)], env=environment, capture_output=True, check=True)
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while first.poll() is None and len(list(folder.glob("outcomes/*.json"))) < 2:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    done = {file: file.stat().st_mtime_ns for file in folder.glob("outcomes/*.json")}
    assert 2 <= len(done) < 5
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert {file: file.stat().st_mtime_ns for file in done} == done, "finished runs are not repeated"
    assert (folder / "table.md").read_text() == (whole / "table.md").read_text()
    assert "zero-shot" in second.stdout and "|---" not in second.stdout, "drawn, not Markdown"
    assert rights(folder) == rights(whole)


def test_the_command_line_prints_the_table_and_fails_with_a_failed_run(
    write: Write, tmp_path: Path, monkeypatch: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    from apd.cli import main

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["apd", "bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0)

    monkeypatch.setattr(runner, "find_machine", lambda *_: here())
    monkeypatch.setattr("apd.bench.find_machine", lambda *_: here())
    suite, out = write(methods={"zero-shot": None, "advvlp": "advvlp", "vlp": "vlp"}), tmp_path / "out"
    assert call(suite, "--output", out) == 0
    told = capfd.readouterr()
    assert max(map(len, told.out.splitlines())) <= 80 and "|---" not in told.out, "drawn, not Markdown"
    figures = [row["accuracy"] for row in table_rows(out) if row["method"] == "zero-shot" and row["attack"] == "clean"]
    assert any("zero-shot" in line and f"{float(figures[0]):.1f}" in line for line in told.out.splitlines())
    lines = told.err.splitlines()
    assert contains(lines[0], "5", "0") and "[5/5]" in told.err
    assert contains(lines[-1], f"{out}/table.md", "apd predict", "apd evaluate"), "what to do next"
    assert call(suite, "--output", out, "--table-only") == 0
    assert capfd.readouterr().out == told.out

    too_long = {"name": "vlp", "prompts": {"text_tokens": 60}}
    assert call(write(methods={"zero-shot": None, "advvlp": "advvlp", "vlp": too_long}), "--output", out) == 1
    told = capfd.readouterr()
    assert all(f"  vlp on colours, 2 shots, seed {seed}: InputError" in told.err for seed in (0, 1))


def test_labels_with_marks_of_other_languages_are_shown_as_they_are(tmp_path: Path) -> None:
    """Dollars are no formula to matplotlib, a formula none to a spreadsheet, and brackets no argument to LaTeX."""
    tables = make_tables(*read_bench(RESULTS / "weights"))[:1]
    labels = ["a $x^$", "$10^{-3}$ vs $\\foo$", "[b] | <c>"]
    table = replace(tables[0], rows=dict(zip(labels, tables[0].rows.values(), strict=False)), against=None)
    assert len(write_plots(tmp_path, [table])) == 1
    text = latex([table])
    assert r"{}[b] \textbar{} \textless{}c\textgreater{}" in text
    twins = [replace(table, title=title) for title in ("birds 2", "birds-2")]
    assert len({*write_plots(tmp_path, twins)}) == 2
