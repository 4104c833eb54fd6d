"""What goes wrong on the command line: one line that says the way out, an exit code, and no work lost."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apd.cli.usage import at_home
from apd.runs.folder import Run

from .command_line import QUICK, Cli
from .models import save_colours
from .refusals import check_error, contains, fail_with, meant


def broken(folder: Path, how: str) -> Path:
    """A folder of images with one thing wrong."""
    save_colours(folder, per_class=8)
    if how == "empty class":
        (folder / "dark").mkdir()
    elif how == "one class":
        shutil.rmtree(folder / "green")
        shutil.rmtree(folder / "blue")
    elif how == "truncated image":
        for file in (folder / "red").iterdir():
            file.write_bytes(file.read_bytes()[:70])
    elif how == "no images":
        for file in folder.rglob("*.png"):
            file.rename(file.with_suffix(".txt"))
    elif how == "long name":
        (folder / "red").rename(folder / "_".join(["red"] * 40))
    return folder


@pytest.mark.parametrize(
    ("how", "options", "words"),
    [
        ("missing", [], ["none/photos"]),
        ("empty class", [], ["dark"]),
        ("one class", [], ["red"]),
        ("truncated image", [], ["red", ".png", "--skip-bad-images"]),
        ("no images", [], ["photos"]),
        ("long name", [], ["red red", "16"]),
    ],
)
def test_bad_data_is_one_line_and_costs_no_finished_work(
    cli: Cli, run: Path, shallow_folder: Path, tmp_path: Path, how: str, options: list[Any], words: list[str]
) -> None:
    data = tmp_path / "none" / "photos" if how == "missing" else broken(tmp_path / "photos", how)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for output in (run, tmp_path / "new"):
        answer = cli("train", data, "--model", shallow_folder, *QUICK, *options, "--output", output, "--overwrite")
        check_error(answer, words)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert not (tmp_path / "new").exists()


BAD_USAGE: list[tuple[str, list[str]]] = [
    ("train", ["data.source"]),
    ("train {colours} --eps 4", ["4", "4/255", "--eps"]),
    ("train {colours} --eps=-1/255", ["-1/255", "--eps"]),
    ("train {colours} --eps 255", ["255", "8/255", "--eps"]),
    ("train {colours} --seed 99999999999999999999", ["train.seed", "--seed", "9223372036854775807"]),
    ("train {colours} --set data.seed=99999999999999999999", ["data.seed", "--set", "9223372036854775807"]),
    ("evaluate {run} --seed 99999999999999999999", ["seed", "9223372036854775807"]),
    ("evaluate {run} --eps 255", ["8/255"]),
    ("train {colours} --method adp", ["'adp'", meant("apd")]),
    ("train {colours} --shots 2 --model glyhps", ["'glyhps'", meant("glyphs")]),
    ("train {colours} --shots 2 --model {colours}", ["config.json"]),
    ("train {colours} --set train.epoch=3", ["train.epochs"]),
    ("train digit", ["'digit'", meant("digits")]),
    ("train {colours} --output {run}", ["finished", "--overwrite"]),
    ("train {colours} --output {run}/run.json", ["{run}/run.json"]),
    ("train {colours} --output {colours}", ["{colours}", "blue", "--output"]),
    ("train {colours} --config none.yaml", ["none.yaml"]),
    ("evaluate", ["--model", "--data"]),
    ("evaluate {run}/none", ["{run}/none", "apd train"]),
    ("evaluate {colours}", ["{colours}", "run.json", "apd train"]),
    ("evaluate {run} --attack pdg-20", ["'pdg-20'", meant("pgd-20")]),
    ("evaluate {run} --eps 4", ["4/255"]),
    ("evaluate {run} --limit 0", ["limit", "0"]),
    ("evaluate {run} --output {run}/run.json/result.json", ["{run}/run.json"]),
    ("evaluate {run} --output {run}", ["{run}", "result.json"]),
    ("certify {run} --output .", ["folder", "result.json"]),
    ("wording {run} --output /", ["/result.json"]),
    ("export {run} --to huggingface --output .", [".", "photos"]),
    ("export {run} --to onnx --output /", ["/", "photos"]),
    ("export {run} --to huggingface --output {run}", ["{run}", "other files"]),
    ("evaluate {run} --split tset", ["split", "'tset'", "'test'"]),
    ("evaluate {run} --device coda", ["'coda'", "auto"]),
    ("predict {run} {run}/none.jpg", ["none.jpg"]),
    ("predict {run} {run}", ["{run}", "IMAGES"]),
    ("predict {run} {colours}/*.webp", ["*.webp"]),
    ("predict {run} {colours} --format yaml", ["'yaml'", "table, json, csv"]),
    ("predict {run} {colours} --format csv --json", ["--json", "--format csv"]),
    ("predict {run} {run}/run.json", ["run.json"]),
    ("list modles", ["'modles'", meant("models")]),
    ("demo --output {colours}", ["{colours}", "--output"]),
]


@pytest.mark.parametrize(("line", "words"), BAD_USAGE)
def test_bad_usage_is_one_line(cli: Cli, trained: Path, colours: Path, line: str, words: list[str]) -> None:
    answer = cli(*(part.format(colours=colours, run=trained) for part in shlex.split(line)))
    check_error(answer, [word.format(colours=colours, run=trained) for word in words])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["train", ""], "Argument 2"),
        (["evaluate", ""], "Argument 2"),
        (["bench", ""], "Argument 2"),
        (["predict", "run", ""], "Argument 3"),
        (["train", "digits", "--output", ""], "--output"),
        (["train", "digits", "--output="], "--output"),
        (["evaluate", "run", "--strong", ""], "Argument 4"),
        (["evaluate", "run", "--limit=3", ""], "Argument 4"),
        ([""], "Argument 1"),
    ],
)
def test_an_unset_shell_variable_is_not_the_current_folder(cli: Cli, arguments: list[str], name: str) -> None:
    check_error(cli(*arguments), [f"{name} is empty", "variable", "not set"])


@pytest.mark.parametrize(
    "line",
    ["evaluate {run}", "certify {run}", "wording {run}", "report {run}", "export {run} --to onnx --overwrite"],
)
def test_what_is_not_a_file_is_not_replaced_by_one(cli: Cli, trained: Path, tmp_path: Path, line: str) -> None:
    """The administrator who sends a result to /dev/null would have a file there from then on."""
    os.mkfifo(tmp_path / "pipe.onnx")
    answer = cli(*line.format(run=trained).split(), "--output", tmp_path / "pipe.onnx")
    check_error(answer, ["pipe.onnx", "not a file"])
    assert (tmp_path / "pipe.onnx").is_fifo()


@pytest.mark.parametrize("path", ["{run}/none.jpg", "{colours}/*.webp", "{run}"])
def test_of_a_path_without_images_nothing_can_be_skipped(cli: Cli, trained: Path, colours: Path, path: str) -> None:
    given = path.format(run=trained, colours=colours)
    for more in ([], ["--skip-bad-images"]):
        answer = cli("predict", trained, given, *more)
        check_error(answer, [given])
        assert "skip" not in answer.err.lower().replace("skipped", "")


def test_a_folder_that_is_no_run_says_what_it_is(cli: Cli, run: Path, tmp_path: Path) -> None:
    check_error(cli("evaluate", run.parent), [str(run.parent), str(run)])
    suite = tmp_path / "suite" / "runs" / "0123" / "run"
    suite.mkdir(parents=True)
    (suite / "run.json").write_text("{}")
    check_error(cli("predict", tmp_path / "suite", "x.jpg"), [str(suite)])
    export = tmp_path / "export"
    (export / "results").mkdir(parents=True)
    (export / "classifier.json").write_text("{}")
    check_error(cli("certify", export), [f"apd leaderboard {export}"])
    (export / "results").rmdir()
    check_error(cli("explore", export), ["export"])


@pytest.mark.parametrize("line", ["evaluate none", "predict none x.jpg"])
def test_a_missing_run_folder_is_told_before_anything_heavy_is_imported(line: str) -> None:
    code = (
        f"import sys, apd.cli; sys.argv = 'apd {line}'.split()\n"
        "try: apd.cli.main()\nexcept SystemExit as stop: print(stop.code, [m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n" and done.stderr.startswith("error: ") and contains(done.stderr, "'none'")


NOT_OURS = (
    *("missing argument", "missing option", "invalid value", "no such", "unexpected extra", "requires an argument"),
    *("input should", "unable to parse", "valid integer", "valid float", "x>=", "does not take a value"),
)
"""Words of click and pydantic, which name neither the value nor the way out."""


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train digits --epoch 3", ["--epoch", "--epochs", "apd train -h"]),
        ("trian digits", ["trian", "train", "apd -h"]),
        ("predict", ["RUN", "apd predict -h"]),
        ("predict run", ["IMAGES", "apd predict -h"]),
        ("evaluate --model glyphs --data digits --limit many", ["many"]),
        ("evaluate --model glyphs --data digits --limit many", ["limit", "auto", "all", "'many'"]),
        ("train digits --set train.epochs=many", ["train.epochs", "--set", "'many'"]),
        ("train digits --set train.optimizer.name=adam", ["train.optimizer.name", "'adam'", "'adamw'"]),
        ("train digits --set train.optimizer.lr=0", ["train.optimizer.lr", "0"]),
        ("train digits --epochs many", ["--epochs", "'many'", "apd train -h"]),
        ("train digits --output", ["--output", "apd train -h"]),
        ("train digits faces", ["'faces'", "apd train -h"]),
        ("certify --sigma 1/x", ["--sigma", "'1/x'", "apd certify -h"]),
        ("verify run --samples 0", ["--samples", "1", "'0'", "apd verify -h"]),
        ("predict run x.jpg --abstain-below 2", ["--abstain-below", "1", "'2'", "apd predict -h"]),
        ("predict run x.jpg --json=yes", ["--json", "apd predict -h"]),
        ("export run", ["--to", "apd export -h"]),
    ],
)
def test_wrong_options_are_one_line(cli: Cli, line: str, words: list[str]) -> None:
    answer = cli(*line.split())
    check_error(answer, words)
    assert not [theirs for theirs in NOT_OURS if theirs in answer.err.lower()]


def test_help_is_wrapped_by_the_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    prose = cli("evaluate", "-h").out.split("Examples:")[0].splitlines()
    assert len([line for line in prose if line.strip()]) == 3, "usage and two paragraphs"


def test_help_keeps_brackets(cli: Cli) -> None:
    assert "[name, ...]" in " ".join(cli("wording", "-h").out.replace("│", " ").split())


@pytest.mark.parametrize("damage", ["version", "half-written checkpoint"])
def test_damaged_run_folders(cli: Cli, run: Path, damage: str) -> None:
    manifest = json.loads((run / "run.json").read_text())
    if damage == "version":
        (run / "run.json").write_text(json.dumps({**manifest, "format": 99}))
        check_error(cli("evaluate", run), ["99", "1"])
        check_error(cli("train", "--output", run, "--resume"), ["99", "1"])
        return
    (run / "run.json").write_text(json.dumps({**manifest, "status": "running"}))
    check_error(cli("evaluate", run), [str(run), "--resume"])
    (run / "checkpoint").mkdir()
    (run / "checkpoint" / "state.safetensors").write_bytes((run / "prompts.safetensors").read_bytes()[:-10])
    check_error(cli("train", "--output", run, "--resume"), ["state.safetensors", "--overwrite"])


def test_full_disk_and_read_only_output(
    cli: Cli, run: Path, shallow_folder: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ("train", colours, "--model", shallow_folder, *QUICK, "--output", run.parent / "new")
    with monkeypatch.context() as patch:
        patch.setattr("apd.util.files.os.fsync", fail_with(errno.ENOSPC))
        check_error(cli(*train), [str(run.parent / "new"), os.strerror(errno.ENOSPC)])
    with monkeypatch.context() as patch:
        patch.setattr("apd.util.files.tempfile.TemporaryFile", fail_with(errno.ENOSPC))
        answer = cli(*train)
        check_error(answer, [os.strerror(errno.ENOSPC)])
        assert answer.err.startswith("error"), "before any work"
    prompts = (run / "prompts.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("apd.util.files.os.fsync", fail_with(errno.ENOSPC))
        check_error(
            cli("evaluate", run, "--attack", "pgd-1", "--limit", 2, "--output", run / "result.json"),
            [os.strerror(errno.ENOSPC)],
        )
    assert (run / "prompts.safetensors").read_bytes() == prompts


def test_ctrl_c_says_how_to_go_on(
    cli: Cli, shallow_folder: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    train = ("train", colours, "--model", shallow_folder, *QUICK, "--output", folder)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("apd.training.loop.Loop.validate", stop)
        answer = cli(*train, "--set", "train.batch_size=2", "--set", "train.checkpoint_every=1")
    assert answer.code == 130
    assert "2 optimiser steps" in answer.err, "the last one was not yet kept"
    assert f"apd train --output {folder} --resume" in answer.err
    resumed = cli("train", "--output", folder, "--resume")
    assert resumed.code == 0, resumed.err
    assert Run.open(folder).finished
    for place in ("apd.training.loop.Loop.run_through", "apd.training.start.load_clip", "apd.data.decode.find_bad"):
        with monkeypatch.context() as patch:
            patch.setattr(place, stop)
            early = cli(*train[:-1], tmp_path / "early run")
        assert early.code == 130
        assert shlex.join(["apd", *map(str, train[:-1]), str(tmp_path / "early run")]) in early.err
        assert not (tmp_path / "early run").exists()


def test_ctrl_c_before_an_unfinished_run_is_replaced_does_not_offer_to_resume_it(
    cli: Cli, run: Path, shallow_folder: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (run / "run.json").write_text((run / "run.json").read_text().replace('"done"', '"running"'))
    monkeypatch.setattr("apd.training.start.load_clip", stop)
    train = ("train", colours, "--model", shallow_folder, *QUICK, "--output", run, "--overwrite", "--seed", 7)
    answer = cli(*train)
    assert answer.code == 130 and "--resume" not in answer.err
    assert shlex.join(["apd", *map(str, train)]) in answer.err


def test_traceback_only_with_debug(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("apd.models.list_models", fail)
    answer = cli("list", "models")
    assert (answer.code, answer.err.count("\n")) == (1, 1)
    assert contains(answer.err, "ZeroDivisionError: two lines", "--debug")
    shown = cli("list", "models", "--debug")
    assert shown.code == 1
    assert "Traceback" in shown.err


@pytest.mark.parametrize(("code", "exit_code"), [(errno.ENOSPC, 2), (errno.EACCES, 2), (errno.EIO, 1)])
def test_system_errors_are_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch, code: int, exit_code: int) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code), "/some/file")

    monkeypatch.setattr("apd.models.list_models", fail)
    answer = cli("list", "models")
    assert answer.code == exit_code
    assert answer.err.count("\n") == 1
    assert "/some/file" in answer.err


def test_reader_that_leaves_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "apd", "list", "data"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    os.close(write)
    assert done.returncode == 1
    assert "Broken" not in done.stderr
    assert "error" not in done.stderr


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell with `apd` in a process of its own; variables that are empty are unset."""
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    known = {name: value for name, value in given.items() if value}
    line = command.replace("apd ", f"{shlex.quote(sys.executable)} -m apd ")
    return subprocess.run(["bash", "-c", line], capture_output=True, env=known, encoding="utf-8", check=False)


def test_closed_streams_are_no_error_and_nothing_is_printed_into_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = shell(f"apd list data --json >&- 2>&-; echo $? > {out}; apd list nonsense >&- 2>&-; echo $? >> {out}")
    assert (out.read_text().split(), done.stdout, done.stderr) == (["0", "2"], "", "")
    head = shell("set -o pipefail; apd list data 2>&1 | head -1")
    assert len(head.stdout.splitlines()) == 1 and head.stderr == ""


ONE_AFTER_THE_OTHER = """
import sys
from apd.cli import main
for words in sys.argv[1:]:
    sys.argv = ["apd", *words.split()]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


def test_an_old_locale_without_home_and_temporary_folder(shallow_folder: Path, colours: Path, tmp_path: Path) -> None:
    """Train and evaluate where ASCII is all that can be printed, with a class name that is not ASCII."""
    data, name = shutil.copytree(colours, tmp_path / "data"), "r\u00f6d \U0001f534"
    (data / "red").rename(data / name)
    bare = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONWARNDEFAULTENCODING": "1"}
    gone = {"HOME": "", "TMPDIR": str(tmp_path / "gone")}
    folder, few = tmp_path / "run", " ".join(map(str, QUICK))
    both = (
        f"train {data} --model {shallow_folder} {few} --output {folder} --json",
        f"evaluate {folder} --attack pgd-1 --limit 4",
    )
    done = shell(shlex.join([sys.executable, "-c", ONE_AFTER_THE_OTHER, *both]), **bare, **gone)
    assert done.returncode == 0, done.stderr
    answer, end = json.JSONDecoder().raw_decode(done.stdout)
    assert name in answer["class_names"] and done.stdout.isascii() and "pgd-1" in done.stdout[end:]
    assert not [line for line in done.stderr.splitlines() if "EncodingWarning" in line and "/apd/" in line]
    assert name in (folder / "README.md").read_text(encoding="utf-8")


def test_a_user_without_home(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: str) -> None:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    check_error(cli("train", "~/photos"), ["'~/photos'", "HOME"])


def test_a_tilde_after_an_option_is_the_home_directory(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    check_error(cli("train", "digits", "--model=~/clip"), ["/home/ann/clip"])
    given = ["train", "~/x", "--output=~/runs", "--data=~", "--set=data.source=~/x", "--name=~ann", "-o=~/x"]
    assert at_home(given) == ["train", "~/x", "--output=/home/ann/runs", "--data=/home/ann", *given[4:]]
