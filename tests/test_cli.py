"""The front door: exit codes, one-line errors, JSON alone on standard output, and what is said next."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import apd
from apd.api import is_first_process
from apd.cli import main
from apd.cli.common import split_names
from apd.demo import DemoSettings, run_demo
from apd.device import pick_device
from apd.errors import InputError
from apd.run import Run

from .models import save_colours


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


Cli = Callable[..., Answer]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `apd` in this process, with the arguments as a shell would split them."""

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["apd", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capfd.readouterr()
        return Answer(int(stop.value.code or 0), out, err)

    return call


def in_process(*arguments: object, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run `apd` in a process of its own."""
    command = [sys.executable, "-m", "apd", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **settings)


QUICK = (
    "--epochs",
    1,
    "--shots",
    2,
    "--set",
    "method.teacher=frozen",
    "--set",
    "train.attack.steps=1",
    "--device",
    "cpu",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path, colours: Path) -> Path:
    """A run made by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "colours"
    done = in_process("train", colours, "--model", clip_folder, *QUICK, "--output", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert f"apd evaluate {folder}" in done.stderr
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    return shutil.copytree(trained, tmp_path / "run")


def test_help_answers_at_once() -> None:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        shown = in_process("--help")
        times.append(time.perf_counter() - started)
        assert shown.returncode == 0
        for command in ("train", "evaluate", "predict", "demo", "bench", "list"):
            assert command in shown.stdout
    assert min(times) < 0.5
    heavy = (
        "import sys, apd.cli; print([m for m in ('torch', 'transformers', 'numpy', 'pydantic') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "demo", "bench", "list"])
def test_help_shows_examples(cli: Cli, command: str) -> None:
    shown = cli(command, "--help")
    assert shown.code == 0
    assert len(re.findall(rf"^\s+apd {command}", shown.out, re.MULTILINE)) >= 2


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"apd {apd.__version__}\n"


def test_public_names_are_there() -> None:
    for name in apd.__all__:
        assert getattr(apd, name) is not None
    assert set(apd.__all__) <= set(dir(apd))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        apd.trian  # noqa: B018


@pytest.mark.parametrize("kind", ["models", "methods", "attacks", "data"])
def test_list(cli: Cli, kind: str) -> None:
    rows = json.loads(cli("list", kind, "--json").out)
    assert all(row["name"] and row["description"] for row in rows)
    everything = json.loads(cli("list", "--json").out)
    assert everything[kind] == rows
    shown = cli("list", kind)
    assert all(row["name"] in shown.out for row in rows)
    assert "apd train" in shown.err


def test_evaluate_prints_json_alone_and_keeps_outcomes(cli: Cli, run: Path) -> None:
    arguments = ("evaluate", run, "--attack", "pgd-2,pgd-1", "--attack", "clean", "--limit", 4)
    answer = cli(*arguments, "--json", "--output", run.parent / "result.json")
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    assert set(result) >= {"clean", "attacks", "worst", "n", "eps", "norm", "seed", "undefended", "versions"}
    assert (list(result["attacks"]), result["n"], result["norm"]) == (["pgd-2", "pgd-1"], 4, "linf")
    assert result["eps"] == pytest.approx(1 / 255), "the run's own"
    assert json.loads((run.parent / "result.json").read_text()) == result
    assert "pgd-2" in (run / "README.md").read_text()
    assert f"apd predict {run}" in answer.err
    again = cli(*arguments)
    assert "pgd-2" in again.out
    assert "undefended" in again.out


def test_evaluate_of_other_classes_and_data(cli: Cli, run: Path, tmp_path: Path) -> None:
    other = save_colours(tmp_path / "other", per_class=6, classes=("dark", "bright"))
    answer = cli("evaluate", run, "--data", other, "--attack", "pgd-1", "--limit", 4, "--json")
    assert answer.code == 0, answer.err
    assert set(json.loads(answer.out)["per_class"]) <= {"dark", "bright"}
    assert "other classes" in answer.err


def test_evaluate_under_domain_shift(cli: Cli, run: Path, tmp_path: Path) -> None:
    """A test set of other classes: the run's prompts serve them, and nobody can train on it."""
    wnids = [f"n{number:08d}" for number in range(200)]
    images = tmp_path / "imagenet-rendition" / "imagenet-r"
    for wnid in wnids:
        (images / wnid).mkdir(parents=True)
        Image.new("RGB", (20, 20), (int(wnid[1:]), 9, 9)).save(images / wnid / "0.png")
    (images.parent / "classnames.txt").write_text("".join(f"{wnid} thing {wnid[1:]}\n" for wnid in wnids))
    source = f"imagenet-r@{tmp_path}"
    answer = cli("evaluate", run, "--data", source, "--attack", "pgd-1", "--limit", 4, "--json")
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    assert result["data"] == "imagenet-r" and all(name.startswith("thing") for name in result["per_class"])
    assert "serve the 200 classes of imagenet-r" in answer.err
    refused = cli("train", source, "--output", tmp_path / "other")
    assert refused.code == 2 and refused.err.startswith("error: imagenet-r is a test set without training images")
    assert not (tmp_path / "other").exists()
    assert "The val split of imagenet-r has no images" in cli("evaluate", run, "--data", source, "--split", "val").err


def test_evaluate_under_a_corruption(cli: Cli, run: Path) -> None:
    arguments = ("evaluate", run, "--attack", "pgd-1", "--limit", 4, "--json")
    plain = cli(*arguments)
    foggy = cli(*arguments, "--corruption", "fog:3")
    assert plain.code == foggy.code == 0, foggy.err
    assert json.loads(foggy.out)["corruption"] == "fog:3" and json.loads(plain.out)["corruption"] is None
    kept = [json.loads(file.read_text())["corruption"] for file in sorted((run / "results").glob("summary*.json"))]
    assert kept.count("fog:3") == 1 and kept.count(None) == len(kept) - 1 >= 1
    card = (run / "README.md").read_text()
    assert "| colours, fog:3 | linf |" in card and "| colours | linf |" in card
    assert "needs a severity from 1 to 5" in cli(*arguments, "--corruption", "fog").err


def test_evaluate_of_the_run_s_own_data_named_again_draws_the_same_images(cli: Cli, run: Path, colours: Path) -> None:
    plain, named = (
        json.loads(cli("evaluate", run, *option, "--split", "val", "--attack", "clean", "--json").out)
        for option in ((), ("--data", colours.parent / "." / colours.name))
    )
    assert plain["n"] == named["n"]
    assert [plain["clean"], plain["per_class"]] == [named["clean"], named["per_class"]]


def test_evaluate_a_model_as_it_is(cli: Cli, clip_folder: Path, colours: Path) -> None:
    answer = cli(
        "evaluate",
        "--model",
        clip_folder,
        "--data",
        colours,
        "--attack",
        "pgd-1",
        "--limit",
        6,
        "--eps",
        "2/255",
        "--json",
    )
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    assert result["eps"] == pytest.approx(2 / 255)
    assert result["undefended"]["clean"] == result["clean"]
    assert "apd train" in answer.err


def test_predict_agrees_with_the_classifier(cli: Cli, run: Path, colours: Path, tmp_path: Path) -> None:
    files = sorted((colours / "red").glob("*.png"))[:2]
    rows = json.loads(cli("predict", run, *files, "--json").out)
    assert [row["image"] for row in rows] == [str(file) for file in files]
    classifier = apd.load_run(run)
    square = classifier.encoder.info.preprocessing.apply(Image.open(files[0]).convert("RGB"))
    pixels = (
        torch.tensor(list(square.get_flattened_data()), dtype=torch.float32).T.reshape(1, 3, *square.size[::-1]) / 255
    )
    expected = classifier(pixels).softmax(-1)[0]
    for entry in rows[0]["classes"]:
        index = classifier.class_names.index(entry["class"])
        assert entry["probability"] == pytest.approx(float(expected[index]), abs=1e-6)
    shown = cli("predict", run, *files, "--top", 1)
    assert shown.out.splitlines()[0].startswith(f"{files[0]}: {rows[0]['classes'][0]['class']} ")
    (tmp_path / "broken.png").write_bytes(files[0].read_bytes()[:60])
    check_error(cli("predict", run, tmp_path / "broken.png"), ["broken.png"])
    mixed = cli("predict", run, tmp_path / "broken.png", *files, "--top", 1)
    assert (mixed.code, mixed.out) == (2, shown.out), "the good ones are answered"
    assert "broken.png" in mixed.err.splitlines()[-1] and "--skip-bad-images" in mixed.err.splitlines()[-1]
    as_json = cli("predict", run, *files, tmp_path / "broken.png", "--json")
    assert as_json.code == 2 and json.loads(as_json.out) == rows
    check_error(cli("predict", run, tmp_path / "broken.png", "--skip-bad-images"), ["broken.png"])
    skipped = cli("predict", run, files[0], tmp_path / "broken.png", "--skip-bad-images", "--json")
    assert [row["image"] for row in json.loads(skipped.out)] == [str(files[0])]
    assert "1 unreadable" in cli("predict", run, files[0], tmp_path / "broken.png", "--skip-bad-images").err


def test_training_says_which_clip_it_trains(cli: Cli, clip_folder: Path, colours: Path, tmp_path: Path) -> None:
    embedded = cli("train", colours, *QUICK, "--output", tmp_path / "embedded")
    assert "the CLIP glyphs" in embedded.err and "For photos give --model" in embedded.err
    other = cli("train", colours, "--model", clip_folder, *QUICK, "--output", tmp_path / "other")
    assert f"the CLIP {clip_folder}" in other.err and "For photos" not in other.err


def test_resume_of_a_finished_run_and_the_run_s_own_settings(cli: Cli, run: Path) -> None:
    before = (run / "prompts.safetensors").read_bytes()
    assert cli("train", "--output", run, "--resume").code == 0
    assert (run / "prompts.safetensors").read_bytes() == before
    changed = cli("train", "--output", run, "--resume", "--epochs", 7)
    assert changed.code == 2
    assert "train.epochs=1, now 7" in changed.err


def test_python_and_command_line_agree(trained: Path, clip_folder: Path, colours: Path, tmp_path: Path) -> None:
    clip, data = apd.load_clip(clip_folder), apd.load_data(colours, shots=2)
    method = {"name": "apd", "teacher": "frozen"}
    made = apd.train(
        clip, data, method=method, eps="1/255", output=tmp_path / "run", epochs=1, attack={"steps": 1}, device="cpu"
    )
    assert made.finished
    assert (made.path / "prompts.safetensors").read_bytes() == (trained / "prompts.safetensors").read_bytes()
    assert made.config.train == Run.open(trained).config.train
    with pytest.raises(InputError, match=r"train\.epoch'.*train\.epochs"):
        apd.train(clip, data, epoch=1)


def test_python_skips_bad_images_and_remembers_it(clip_folder: Path, tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "photos", per_class=8)
    clip, data = apd.load_clip(clip_folder), apd.load_data(folder, shots=2)
    bad = folder / data.train.ids[0]
    bad.write_bytes(bad.read_bytes()[:70])
    with pytest.raises(InputError, match="skip"):
        apd.train(clip, data, epochs=1, device="cpu")
    run = apd.train(clip, data, epochs=1, device="cpu", skip_bad_images=True)
    assert run.config.data.skip_bad_images


def test_unreadable_test_images_are_told_before_training(cli: Cli, clip_folder: Path, tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "photos", per_class=8)
    bad = folder / apd.load_data(folder, shots=2).test.ids[0]
    bad.write_bytes(bad.read_bytes()[:70])
    train = ("train", folder, "--model", clip_folder, *QUICK)
    answer = cli(*train, "--output", tmp_path / "run")
    assert answer.code == 0
    warning = answer.err.splitlines()[0]
    assert warning.startswith(f"Warning: cannot read the image {bad}") and "1 cannot be read" in warning
    check_error(cli("evaluate", tmp_path / "run", "--attack", "clean"), [str(bad), "--skip-bad-images"])
    assert "Warning" not in cli(*train, "--skip-bad-images", "--output", tmp_path / "skipping").err


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
        ("missing", [], ["folder"]),
        ("empty class", [], ["dark"]),
        ("one class", [], ["class", "red"]),
        ("few images", ["--shots", 16], ["16", "shots"]),
        ("truncated image", [], ["red", ".png", "--skip-bad-images"]),
        ("no images", [], ["image"]),
        ("long name", [], ["red red", "context"]),
    ],
)
def test_bad_data_is_one_line_and_costs_no_finished_work(
    cli: Cli, run: Path, clip_folder: Path, tmp_path: Path, how: str, options: list[Any], words: list[str]
) -> None:
    data = tmp_path / "none" / "photos" if how == "missing" else broken(tmp_path / "photos", how)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for output in (run, tmp_path / "new"):
        answer = cli("train", data, "--model", clip_folder, *QUICK, *options, "--output", output, "--overwrite")
        check_error(answer, words)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert not (tmp_path / "new").exists()


def check_error(answer: Answer, words: list[str]) -> None:
    assert answer.code == 2, answer.err
    assert answer.out == ""
    errors = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert answer.err.rstrip().endswith(errors[0]), "the error is the last line; no traceback follows"
    for word in words:
        assert word in errors[0]


BAD_USAGE: list[tuple[str, list[str]]] = [
    ("train", ["data.source"]),
    ("train {colours} --eps 4", ["got 4", "4/255", "--eps"]),
    ("train {colours} --eps=-1/255", ["-1/255"]),
    ("train {colours} --method adp", ["'adp'", "Did you mean apd?"]),
    ("train {colours} --shots 2 --model glyhps", ["'glyhps'", "Did you mean glyphs?"]),
    ("train {colours} --shots 2 --model {colours}", ["config.json"]),
    ("train {colours} --set train.epoch=3", ["train.epochs"]),
    ("train digit", ["'digit'", "Did you mean digits?"]),
    ("train {colours} --output {run}", ["--resume", "--overwrite"]),
    ("train {colours} --output {run}/run.json", ["is a file"]),
    ("train {colours} --output {colours}", ["holds other files"]),
    ("train {colours} --config none.yaml", ["none.yaml"]),
    ("evaluate", ["--model", "--data"]),
    ("evaluate {run}/none", ["No run folder"]),
    ("evaluate {colours}", ["no run folder"]),
    ("evaluate {run} --attack pdg-20", ["'pdg-20'", "Did you mean pgd-20?"]),
    ("evaluate {run} --eps 4", ["4/255"]),
    ("evaluate {run} --limit 0", ["limit"]),
    ("evaluate {run} --output {run}/run.json/result.json", ["Cannot write", "run.json"]),
    ("evaluate {run} --split tset", ["split", "tset"]),
    ("evaluate {run} --device coda", ["'coda'", "device auto"]),
    ("predict {run} {run}/none.jpg", ["none.jpg"]),
    ("predict {run} {run}", ["is a folder"]),
    ("predict {run} {run}/run.json", ["run.json"]),
    ("list modles", ["'modles'", "Did you mean models?"]),
    ("demo --output {colours}", ["holds other files"]),
]


@pytest.mark.parametrize(("line", "words"), BAD_USAGE)
def test_bad_usage_is_one_line(cli: Cli, trained: Path, colours: Path, line: str, words: list[str]) -> None:
    answer = cli(*(part.format(colours=colours, run=trained) for part in line.split()))
    check_error(answer, words)


@pytest.mark.parametrize("line", ["evaluate none", "predict none x.jpg"])
def test_a_missing_run_folder_is_told_before_anything_heavy_is_imported(line: str) -> None:
    code = (
        f"import sys, apd.cli; sys.argv = 'apd {line}'.split()\n"
        "try: apd.cli.main()\nexcept SystemExit as stop: print(stop.code, [m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n" and done.stderr.startswith("error: No run folder 'none'")


@pytest.mark.parametrize("line", ["train digits --epoch 3", "trian digits", "predict", "evaluate --limit many"])
def test_wrong_options_are_code_2(cli: Cli, line: str) -> None:
    answer = cli(*line.split())
    assert answer.code == 2
    assert "Traceback" not in answer.err


@pytest.mark.parametrize("damage", ["version", "half-written checkpoint"])
def test_damaged_run_folders(cli: Cli, run: Path, damage: str) -> None:
    manifest = json.loads((run / "run.json").read_text())
    if damage == "version":
        (run / "run.json").write_text(json.dumps({**manifest, "format": 99}))
        check_error(cli("evaluate", run), ["version 99"])
        check_error(cli("train", "--output", run, "--resume"), ["version 99"])
        return
    (run / "run.json").write_text(json.dumps({**manifest, "status": "running"}))
    check_error(cli("evaluate", run), ["unfinished", "--resume"])
    (run / "checkpoint").mkdir()
    (run / "checkpoint" / "state.safetensors").write_bytes((run / "prompts.safetensors").read_bytes()[:-10])
    check_error(cli("train", "--output", run, "--resume"), ["state.safetensors", "damaged", "--overwrite"])


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_and_read_only_output(
    cli: Cli, run: Path, clip_folder: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ("train", colours, "--model", clip_folder, *QUICK, "--output", run.parent / "new")
    with monkeypatch.context() as patch:
        patch.setattr("apd.files.os.fsync", full_disk)
        check_error(cli(*train), ["No space left", "Free some space"])
    with monkeypatch.context() as patch:
        patch.setattr("apd.files.tempfile.TemporaryFile", full_disk)
        answer = cli(*train)
        check_error(answer, ["No space left"])
        assert answer.err.startswith("error"), "before any work"
    prompts = (run / "prompts.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("apd.files.os.fsync", full_disk)
        check_error(
            cli("evaluate", run, "--attack", "pgd-1", "--limit", 2, "--output", run / "result.json"), ["No space"]
        )
    assert (run / "prompts.safetensors").read_bytes() == prompts


def test_ctrl_c_says_how_to_go_on(
    cli: Cli, clip_folder: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    train = ("train", colours, "--model", clip_folder, *QUICK, "--output", folder)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("apd.training.loop.Loop.validate", stop)
        answer = cli(*train)
    assert answer.code == 130
    assert f"apd train --output {folder} --resume" in answer.err
    resumed = cli("train", "--output", folder, "--resume")
    assert resumed.code == 0, resumed.err
    assert Run.open(folder).finished
    with monkeypatch.context() as patch:
        patch.setattr("apd.training.loop.Loop.run_through", stop)
        early = cli(*train[:-1], tmp_path / "early")
    assert early.code == 130
    assert "before there was anything to save" in early.err
    assert not (tmp_path / "early").exists()


def test_traceback_only_with_debug(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("apd.clip.list_models", fail)
    answer = cli("list", "models")
    assert (answer.code, answer.err) == (1, "error: ZeroDivisionError: two lines (--debug shows the traceback)\n")
    shown = cli("list", "models", "--debug")
    assert shown.code == 1
    assert "Traceback" in shown.err


@pytest.mark.parametrize(("code", "exit_code"), [(errno.ENOSPC, 2), (errno.EACCES, 2), (errno.EIO, 1)])
def test_system_errors_are_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch, code: int, exit_code: int) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code), "/some/file")

    monkeypatch.setattr("apd.clip.list_models", fail)
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


def test_small_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_first_process()
    monkeypatch.setenv("RANK", "1")
    assert not is_first_process()
    assert split_names(["a, b", "c,"]) == ["a", "b", "c"]
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in ("cpu", "cuda", "mps")


def test_demo_trains_evaluates_and_owns_its_folder(clip_folder: Path, colours: Path, tmp_path: Path) -> None:
    small = DemoSettings(
        model=str(clip_folder), data=str(colours), shots=1, epochs=1, limit=4, attacks=("pgd-1", "pgd-2")
    )
    said: list[str] = []
    summary = run_demo(tmp_path / "demo", small, said.append)
    assert json.loads((tmp_path / "demo" / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["eps"] == small.eps
    assert [row["method"] for row in summary["rows"]] == ["zero-shot", "control", "apd"]
    assert all({"clean", "pgd-1", "pgd-2"} <= row.keys() for row in summary["rows"])
    assert Run.open(tmp_path / "demo" / "control").config.method.name == "advvlp"
    assert said
    again = run_demo(tmp_path / "demo", replace(small, seed=1), said.append)
    assert again["settings"]["seed"] == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="holds other files"):
        run_demo(tmp_path / "mine", small, said.append)


def test_demo_command_prints_table_and_next_steps(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"clean": 90.0, "autoattack": 12.34, "n_clean": 4, "n_attacked": 4}
    rows = [{"method": name, **row} for name in ("zero-shot", "control", "apd")]
    monkeypatch.setattr("apd.demo.run_demo", lambda *_: {"eps": "1/255", "rows": rows})
    answer = cli("demo", "--quick", "--output", tmp_path / "demo")
    assert answer.code == 0
    assert all(word in answer.out for word in ("zero-shot", "control", "apd", "autoattack", "12.3", "1/255"))
    assert "apd train photos" in answer.err
