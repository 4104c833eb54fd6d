"""The front door: help, lists, training, the demo, what is said next, and Python that does the same."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.core import TyperGroup

import apd
import apd.cli
from apd.cli.common import split_names
from apd.demo import DemoSettings, run_demo
from apd.evaluation.certified.settings import CertifySettings
from apd.evaluation.settings import EvaluationSettings
from apd.runs.config import load_config
from apd.runs.folder import Run
from apd.settings.options import TrainOptions
from apd.util.device import pick_device
from apd.util.section import Section

from .command_line import QUICK, Answer, Cli, Said, in_process
from .models import save_colours
from .refusals import check_error, meant, refused


def test_help_names_the_commands_and_loads_nothing_heavy() -> None:
    """What makes it answer at once; how soon is measured in ``benchmarks/startup.py``."""
    shown = in_process("--help")
    assert shown.returncode == 0
    for command in (
        "train",
        "evaluate",
        "predict",
        "serve",
        "calibrate",
        "average",
        "demo",
        "bench",
        "list",
        "explore",
        "doctor",
    ):
        assert command in shown.stdout
    code = (
        "import sys, apd.cli; sys.argv = ['apd', '--help']\n"
        "try: apd.cli.main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'pydantic') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "command",
    ["train", "evaluate", "predict", "serve", "calibrate", "average", "demo", "bench", "list", "explore", "doctor"],
)
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
    with refused("apd", "trian", by=AttributeError):
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


def test_list_settings_names_every_setting_of_a_training_with_its_default(cli: Cli) -> None:
    rows = {row["name"]: row for row in json.loads(cli("list", "settings", "--json").out)}
    assert all(row["description"] for row in rows.values())
    assert "default" not in rows["data.source"]
    named = {"data.source": "x", **{name: row["default"] for name, row in rows.items() if "default" in row}}
    assert load_config(flags=named) == load_config(flags={"data.source": "x"})
    assert {name for name in rows if name.startswith("train.")} >= {
        f"train.{name}" for name in TrainOptions.__annotations__ if name not in ("optimizer", "augment")
    }
    shown = cli("list", "settings")
    assert re.search(r"train\.optimizer\.lr .*\(default: 0\.003\)", shown.out)
    assert "--set NAME=VALUE" in shown.err
    assert "train.optimizer.lr" not in cli("list").out


def defaults_in_help(command: str) -> dict[str, str]:
    """Which default the help of a command gives for each parameter, where that is a value; that without a run, if it says so."""
    group = typer.main.get_command(apd.cli.app)
    assert isinstance(group, TyperGroup)
    helps = {str(each.name): getattr(each, "help", None) or "" for each in group.commands[command].params}
    found = {name: re.search(r"\(default: (?:.*without a run )?(\S+)\)$", text) for name, text in helps.items()}
    return {name: match[1] for name, match in found.items() if match}


def test_defaults_in_the_help_of_train_are_those_of_the_settings() -> None:
    """Help is written by hand: it must be there before any setting is imported."""
    given = defaults_in_help("train")
    sections = {"method": "method.name", "shots": "data.shots"}
    sections |= {name: f"train.{name}" for name in ("eps", "seed", "epochs", "device")}
    flags = {sections.get(name, name): text for name, text in given.items() if name != "output"}
    assert len(flags) == 7
    assert load_config(flags={"data.source": "x", **flags}) == load_config(flags={"data.source": "x"})


@pytest.mark.parametrize(
    "command, settings, count", [("evaluate", EvaluationSettings, 5), ("certify", CertifySettings, 7)]
)
def test_defaults_in_help_are_those_of_the_settings(command: str, settings: type[Section], count: int) -> None:
    renamed = {{"attack": "attacks"}.get(name, name): text for name, text in defaults_in_help(command).items()}
    given = {name: text for name, text in renamed.items() if name in settings.model_fields}
    fields = {name: settings.model_fields[name].default for name in given}
    fields |= {"attacks": ",".join(fields["attacks"]).removeprefix("clean,")} if "attacks" in fields else {}
    assert len(given) == count and given == {name: str(value) for name, value in fields.items()}


def test_training_says_which_clip_it_trains(cli: Cli, shallow_folder: Path, colours: Path, tmp_path: Path) -> None:
    embedded = cli("train", colours, *QUICK, "--output", tmp_path / "embedded")
    assert "CLIP model glyphs" in embedded.err and "For photos give --model" in embedded.err
    other = cli("train", colours, "--model", shallow_folder, *QUICK, "--output", tmp_path / "other")
    assert f"CLIP model {shallow_folder}" in other.err and "For photos" not in other.err


def test_sentences_around_the_class_name_are_an_option(
    cli: Cli, shallow_folder: Path, colours: Path, tmp_path: Path
) -> None:
    sentences = ["a drawing of a {}.", "the {}."]
    options = [word for sentence in sentences for word in ("--template", sentence)]
    cli("train", colours, "--model", shallow_folder, *QUICK, *options, "--output", tmp_path / "run")
    assert Run.open(tmp_path / "run").config.data.templates == tuple(sentences)
    check_error(cli("train", colours, "--template", "a drawing"), ["'a drawing'", "{}"])


def test_commands_begin_with_what_they_work_on(cli: Cli, shallow_folder: Path, tmp_path: Path) -> None:
    names = ("blue", "bright", "dark", "green")
    folder, run = save_colours(tmp_path / "photos", per_class=10, classes=names), tmp_path / "run"
    data = apd.load_data(folder, shots=2)
    model = ("--model", shallow_folder)
    train = cli("train", folder, *model, *QUICK, "--output", run)
    first = train.err.splitlines()[0]
    sizes = [len(data.train), len(data.val), len(data.test)]
    assert first.startswith("photos: blue, bright, dark, … (4 classes); ") and str(shallow_folder) in first
    assert [int(number) for number in re.findall(r"(\d+) (?:train|validation|test)\b", first)] == sizes
    assert "apd" in first and str(run) in first
    for command in (("evaluate", run), ("evaluate", *model, "--data", folder)):
        line = cli(*command, "--attack", "clean", "--limit", 2).err.splitlines()[0]
        assert line.startswith("photos: blue, bright, dark, … (4 classes); ") and str(shallow_folder) in line


def test_suggested_commands_can_be_pasted_whatever_the_folders_are_called(
    cli: Cli, shallow_folder: Path, colours: Path, tmp_path: Path
) -> None:
    def suggested(answer: Answer) -> list[str]:
        line = next(line for line in reversed(answer.err.splitlines()) if "Next: apd " in line)
        return shlex.split(line.partition("Next: apd ")[2])

    model = shutil.copytree(shallow_folder, tmp_path / "my clip")
    photos, run = shutil.copytree(colours, tmp_path / "it's photos"), tmp_path / "my run; $HOME"
    bare = suggested(cli("evaluate", "--model", model, "--data", photos, "--attack", "clean", "--limit", 2))
    assert bare == ["train", str(photos), "--model", str(model)]
    trained = suggested(cli(*bare, *QUICK, "--output", run))
    assert trained == ["evaluate", str(run)]
    told = cli(*trained, "--attack", "clean", "--limit", 2).err.splitlines()
    several = [shlex.split(line)[1:] for line in told[told.index("Next:") + 1 :]]
    assert all(str(run) in command for command in several)
    evaluated = next(command for command in several if command[0] == "predict")
    image = next(photos.rglob("*.png"))
    assert suggested(cli(*evaluated[:2], image))[:2] == ["evaluate", str(run)]
    (run / "run.json").write_text((run / "run.json").read_text().replace('"done"', '"running"'))
    assert f"--output {shlex.quote(str(run))} --resume" in cli("evaluate", run).err


def test_class_names_reach_a_terminal_as_text(cli: Cli, shallow_folder: Path, tmp_path: Path) -> None:
    names = ("\x1b[31mred", "\x9b32m<b>", "[bold]x")
    folder = save_colours(tmp_path / "\x1b]0;title\x07[red]", per_class=6, classes=("red", "green", "blue"))
    for colour, name in zip(("red", "green", "blue"), names, strict=True):
        (folder / colour).rename(folder / name)
    (folder / names[0] / "bad\x1b[2J.png").write_bytes(b"")
    run = tmp_path / "run"
    image = next(folder.rglob("000.png"))
    for command in (
        ("train", folder, "--model", shallow_folder, *QUICK, "--skip-bad-images", "--output", run),
        ("evaluate", run, "--attack", "clean"),
        ("predict", run, image),
        ("predict", run, image, "--json"),
        ("predict", run, folder / names[0] / "bad\x1b[2J.png"),
    ):
        answer = cli(*command)
        assert all(char.isprintable() for char in (answer.out + answer.err).replace("\n", "")), command
        assert answer.code == (2 if "bad" in str(command[2]) else 0), answer.err
    assert "[red]" in cli("evaluate", run, "--attack", "clean").out


def test_resume_of_a_finished_run_and_the_run_s_own_settings(cli: Cli, run: Path) -> None:
    before = (run / "prompts.safetensors").read_bytes()
    assert cli("train", "--output", run, "--resume").code == 0
    assert (run / "prompts.safetensors").read_bytes() == before
    changed = cli("train", "--output", run, "--resume", "--epochs", 7)
    assert changed.code == 2
    assert "train.epochs=1, now 7" in changed.err


def test_python_and_command_line_agree(trained: Path, shallow_folder: Path, colours: Path, tmp_path: Path) -> None:
    clip, data = apd.load_clip(shallow_folder), apd.load_data(colours, shots=2)
    method = {"name": "apd", "teacher": "frozen"}
    made = apd.train(
        clip, data, method=method, eps="1/255", output=tmp_path / "run", epochs=1, attack={"steps": 1}, device="cpu"
    )
    assert made.finished
    assert (made.path / "prompts.safetensors").read_bytes() == (trained / "prompts.safetensors").read_bytes()
    assert made.config.train == Run.open(trained).config.train
    with refused("train.epoch", meant("train.epochs")):
        apd.train(clip, data, epoch=1)


def test_python_skips_bad_images_and_remembers_it(shallow_folder: Path, tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "photos", per_class=8)
    clip, data = apd.load_clip(shallow_folder), apd.load_data(folder, shots=2)
    bad = folder / data.train.ids[0]
    bad.write_bytes(bad.read_bytes()[:70])
    with refused(str(bad), "skip_bad_images=True"):
        apd.train(clip, data, epochs=1, device="cpu")
    run = apd.train(clip, data, epochs=1, device="cpu", skip_bad_images=True)
    assert run.config.data.skip_bad_images


def break_images(folder: Path, *ids: str) -> None:
    for id_ in ids:
        (folder / id_).write_bytes((folder / id_).read_bytes()[:70])


def test_training_images_left_out_are_told_and_recorded(cli: Cli, shallow_folder: Path, tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "photos", per_class=10)
    data = apd.load_data(folder, shots=2)
    train, val = len(data.train), len(data.val)
    bad_train, bad_val = [data.train.ids[0], data.train.ids[2]], [data.val.ids[1]]
    assert data.train.labels[0] != data.train.labels[2]
    break_images(folder, *bad_train, *bad_val)
    command = ("train", folder, "--model", shallow_folder, *QUICK, "--skip-bad-images", "--output", tmp_path / "run")
    answer = cli(*command)
    assert answer.code == 0, answer.err
    assert f"Left out: 2 of {train} training images, 1 of {val} validation images, which" in answer.err
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (manifest["data"]["train_images"], manifest["data"]["validation_images"]) == (train - 2, val - 1)
    assert manifest["left_out"] == {
        "train_images": 2,
        "validation_images": 1,
        "replaced": False,
        "ids": [*bad_train, *bad_val],
    }
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"| training images | {train - 2} of {train}; 2 unreadable left out, no others in their place |" in card
    assert f"| validation images | {val - 1} of {val}; 1 unreadable left out, no others in their place |" in card


def test_one_heic_among_many_is_left_out_and_converting_is_said_once(
    cli: Cli, shallow_folder: Path, tmp_path: Path
) -> None:
    folder = save_colours(tmp_path / "photos", per_class=10)
    for colour in ("red", "green"):
        (folder / colour / "IMG_1.heic").write_bytes(b"\0\0\0\x18ftypheic")
    command = ("train", folder, "--model", shallow_folder, *QUICK, "--shots", "all", "--output", tmp_path / "run")
    refused = cli(*command)
    assert refused.code == 2 and "IMG_1.heic" in refused.err and "--skip-bad-images" in refused.err
    answer = cli(*command, "--skip-bad-images")
    assert answer.code == 0, answer.err
    left_out = json.loads((tmp_path / "run" / "run.json").read_text())["left_out"]["ids"]
    evaluated = json.loads(cli("evaluate", tmp_path / "run", "--attack", "clean", "--json").out)["skipped_images"]
    assert sorted([*left_out, *evaluated]) == ["green/IMG_1.heic", "red/IMG_1.heic"]
    assert answer.err.count("-format jpg *.heic") == int(bool(left_out))


def test_fewer_images_than_shots_are_trained_on_with_a_notice(cli: Cli, shallow_folder: Path, tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "photos", per_class=10)
    train = ("train", folder, "--model", shallow_folder, *QUICK, "--output", tmp_path / "run")
    answer = cli(*train, "--shots", 16)
    assert answer.code == 0, answer.err
    notices = [line for line in answer.err.splitlines() if "fewer in 3 of 3 classes (the fewest: 6 of" in line]
    assert len(notices) == 1 and "16" in notices[0]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["train_images"] == 18
    assert "fewer in" not in cli(*train, "--overwrite").err


def test_nothing_is_told_where_nothing_is_left_out(
    cli: Cli, shallow_folder: Path, colours: Path, tmp_path: Path
) -> None:
    command = ("train", colours, "--model", shallow_folder, *QUICK, "--skip-bad-images", "--output", tmp_path / "run")
    assert "Left out" not in cli(*command).err
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["left_out"]["ids"] == []
    used = manifest["data"]["train_images"]
    assert f"| training images | {used} |" in (tmp_path / "run" / "README.md").read_text()


def test_a_class_without_a_readable_training_image_is_refused(cli: Cli, shallow_folder: Path, tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "photos", per_class=10)
    data = apd.load_data(folder, shots=2)
    lost = [id_ for id_, label in zip(data.train.ids, data.train.labels.tolist(), strict=True) if label == 1]
    break_images(folder, *lost)
    command = ("train", folder, "--model", shallow_folder, *QUICK, "--skip-bad-images", "--output", tmp_path / "run")
    check_error(cli(*command), [f"class {data.class_names[1]!r}", f"none of {len(lost)} can be read", lost[0]])
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_the_images_it_was_started_with(shallow_folder: Path, tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "photos", per_class=10)
    clip, data = apd.load_clip(shallow_folder), apd.load_data(folder, shots=2)
    settings = {"epochs": 1, "device": "cpu", "output": tmp_path / "run", "skip_bad_images": True}
    apd.train(clip, data, **settings)
    break_images(folder, data.train.ids[0])
    with refused(str(tmp_path / "run"), "other images", str(folder), "--overwrite"):
        apd.train(clip, data, resume=True, **settings)


def test_unreadable_test_images_are_told_before_training(cli: Cli, shallow_folder: Path, tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "photos", per_class=8)
    bad = folder / apd.load_data(folder, shots=2).test.ids[0]
    bad.write_bytes(bad.read_bytes()[:70])
    train = ("train", folder, "--model", shallow_folder, *QUICK)
    answer = cli(*train, "--output", tmp_path / "run")
    assert answer.code == 0
    warning = answer.err.splitlines()[1]
    assert warning.startswith(f"Warning: cannot read the image {bad}") and "1 cannot be read" in warning
    check_error(cli("evaluate", tmp_path / "run", "--attack", "clean"), [str(bad), "--skip-bad-images"])
    resumed = cli("train", "--output", tmp_path / "run", "--resume")
    for said in (answer, resumed):
        suggested = said.err.splitlines()[-1].partition("Next: apd ")[2]
        assert suggested == f"evaluate {tmp_path / 'run'} --skip-bad-images"
    assert cli(*suggested.split(), "--attack", "clean").code == 0
    skipping = cli(*train, "--skip-bad-images", "--output", tmp_path / "skipping")
    assert "Warning" not in skipping.err and skipping.err.endswith(f"apd evaluate {tmp_path / 'skipping'}\n")
    assert cli("evaluate", tmp_path / "skipping", "--attack", "clean").code == 0


def test_small_helpers() -> None:
    assert split_names(["a, b", "c,"]) == ["a", "b", "c"]
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in ("cpu", "cuda", "mps")


def test_demo_trains_evaluates_and_owns_its_folder(
    shallow_folder: Path, colours: Path, tmp_path: Path, said: Said
) -> None:
    small = DemoSettings(
        model=str(shallow_folder),
        data=str(colours),
        shots=1,
        epochs=1,
        limit=4,
        attacks=("pgd-1",),
        few=2,
        strongest="pgd-2",
    )
    summary = run_demo(tmp_path / "demo", small)
    assert json.loads((tmp_path / "demo" / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["eps"] == small.eps
    assert [row["method"] for row in summary["rows"]] == ["zero-shot", "control", "apd", "apd+unlabelled"]
    steps = Run.open(tmp_path / "demo" / "apd+unlabelled").manifest["summary"]["steps"]
    assert steps == 1, "one epoch of few images is one step, whatever the row's own epochs"
    assert summary["differences"]["apd"]["pgd-1"].keys() >= {"mean", "low", "high"}
    with Image.open(tmp_path / "demo" / "report.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 200
    assert all({"clean", "pgd-1", "pgd-2"} <= row.keys() for row in summary["rows"])
    assert Run.open(tmp_path / "demo" / "control").config.method.name == "advvlp"
    assert {"training control", "training apd"} <= set(said())
    again = run_demo(tmp_path / "demo", replace(small, seed=1))
    assert again["settings"]["seed"] == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with refused(str(tmp_path / "mine"), "--output"):
        run_demo(tmp_path / "mine", small)


def test_demo_command_prints_table_and_next_steps(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"clean": 90.0, "pgd-20": 20.0, "autoattack": 12.34, "n_clean": 9, "n_attacked": 4, "n_strongest": 3}
    rows = [{"method": name, **row} for name in ("zero-shot", "control", "apd")]
    more = {"apd": {"autoattack": {"mean": 7.25, "low": -1.5, "high": 9.0, "n": 3}}}
    monkeypatch.setattr("apd.demo.run_demo", lambda *_: {"eps": "1/255", "rows": rows, "differences": more})
    answer = cli("demo", "--quick", "--output", tmp_path / "demo")
    assert answer.code == 0
    assert all(
        word in answer.out
        for word in ("zero-shot", "control", "apd", "autoattack", "12.3", "1/255", "3 images", "+7.2")
    )
    assert "apd train photos" in answer.err


def test_lists_wrap_on_a_terminal_and_are_plain_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from apd.cli import listing

    text = "word " * 40
    assert listing._entry("  key  ", text) == f"  key  {text}"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    lines = listing._entry("  key  ", text).splitlines()
    assert len(lines) > 1 and max(map(len, lines)) <= 80 and all(line.startswith(" " * 7) for line in lines[1:])
    assert " ".join(lines).split() == ["key", *text.split()]
