"""`apd evaluate` and `apd predict`: JSON alone on standard output, outcomes kept, the right images and classes."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import apd
from apd import evaluation
from apd.evaluation.kept import evaluate_zero_shot

from .command_line import Cli
from .models import save_colours
from .refusals import check_error, refused

pytestmark = pytest.mark.usefixtures("short_checks")


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
    assert "zero-shot" in again.out


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


def test_evaluate_a_model_as_it_is(cli: Cli, shallow_folder: Path, colours: Path) -> None:
    answer = cli(
        "evaluate",
        "--model",
        shallow_folder,
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


def test_strong_is_autoattack_and_excludes_other_attacks(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def record(path: Path, **given: object) -> apd.Result:
        asked.append(given)
        return evaluate_run(path, **{**given, "attacks": "clean"})  # type: ignore[arg-type]

    evaluate_run = evaluation.evaluate_run
    monkeypatch.setattr(evaluation, "evaluate_run", record)
    assert cli("evaluate", run, "--strong", "--limit", 2).code == 0
    assert asked[0]["attacks"] == ["autoattack"] and asked[0]["save_images"] is False
    check_error(cli("evaluate", run, "--strong", "--attack", "pgd-1"), ["--strong"])
    check_error(cli("evaluate", run, "--attack", ","), ["--attack", "apd list attacks"])


def test_the_next_commands_are_suggested(cli: Cli, run: Path) -> None:
    moved = run.rename(run.with_name("my run"))
    answer = cli("evaluate", moved, "--attack", "clean", "--limit", 3)
    said = [line.strip() for line in answer.err[answer.err.index("Next:") :].splitlines()[1:]]
    assert said[0] == f"apd evaluate '{moved}' --strong --limit 3"
    assert f"apd predict '{moved}' IMAGES" in said
    assert f"apd export '{moved}' --to onnx --output 'my run.onnx'" in said, "--output is required"
    for command in said:
        assert cli(command.split()[1], "--help").code == 0, "only commands that there are"


def test_the_next_commands_are_of_the_options_that_they_have(
    cli: Cli, run: Path, shallow_folder: Path, colours: Path, tmp_path: Path
) -> None:
    asked = ("--data", colours, "--attack", "clean", "--limit", 3, "--norm", "l2", "--eps", 0.5)
    answer = cli("evaluate", "--model", shallow_folder, *asked)
    (said,) = [line for line in answer.err.splitlines() if "apd train" in line]
    assert said.endswith("--eps 0.5 --set train.norm=l2")
    photos = shutil.copytree(colours, tmp_path / "photos")
    (photos / "green" / "broken.png").write_bytes(b"x")
    answer = cli("evaluate", run, "--data", photos, "--attack", "clean", "--limit", 3, "--skip-bad-images")
    (said,) = [line for line in answer.err.splitlines() if "--strong" in line]
    assert said.endswith("--skip-bad-images")


def test_a_table_with_the_columns_of_the_run_s_own_is_read_by_them(cli: Cli, run: Path, colours: Path) -> None:
    file = run / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["data"]["columns"] = ["shot", "species"]
    file.write_text(yaml.safe_dump(config))
    table = colours.parent / "moved.csv"
    rows = [f"{image.relative_to(colours.parent)},{image.parent.name}" for image in sorted(colours.rglob("*.png"))]
    table.write_text("\n".join(["shot,species", *rows]))
    try:
        answer = cli("evaluate", run, "--data", table, "--attack", "clean", "--limit", 3, "--json")
    finally:
        table.unlink()
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["n"] == 3


def test_data_that_have_moved_are_asked_for(cli: Cli, run: Path) -> None:
    file = run / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["data"]["source"] = "../photos"
    file.write_text(yaml.safe_dump(config))
    check_error(cli("evaluate", run), ["../photos", str(run), "--data"])


def test_the_next_commands_repeat_what_they_need(cli: Cli, run: Path, colours: Path, tmp_path: Path) -> None:
    other = shutil.copytree(colours, tmp_path / "other photos")
    answer = cli("evaluate", run, "--data", other, "--eps", "2/255", "--attack", "clean", "--limit", 3)
    said = [shlex.split(line) for line in answer.err[answer.err.index("Next:") :].splitlines()[1:]]
    by_name = {command[1]: command[2:] for command in said}
    assert by_name["evaluate"] == [str(run), "--strong", "--limit", "3", "--data", str(other), "--eps", "2/255"]
    assert by_name["report"] == [str(run), "--data", str(other)]
    assert "--data" not in by_name["predict"] + by_name["explore"] + by_name["export"]


def test_a_budget_of_the_whole_range_is_told(cli: Cli, run: Path) -> None:
    common = ("evaluate", run, "--attack", "clean", "--limit", 3)
    assert "1/255" in cli(*common, "--eps", "1").err
    assert "1/255" not in cli(*common, "--eps", "1", "--norm", "l2").err


def test_accuracy_at_chance_level_is_told(cli: Cli, run: Path, tmp_path: Path) -> None:
    other = save_colours(tmp_path / "other", per_class=12, classes=("dark", "bright"))
    for number in range(0, 12, 2):
        dark, bright = (other / name / f"{number:03d}.png" for name in ("dark", "bright"))
        dark.rename(other / "kept.png")
        bright.rename(dark)
        (other / "kept.png").rename(bright)
    poor = cli("evaluate", run, "--data", other, "--attack", "clean")
    assert poor.code == 0 and "chance" in poor.out and "50.0 %" in poor.out
    assert "chance" in (run / "README.md").read_text()


def test_predict_agrees_with_the_classifier(cli: Cli, run: Path, colours: Path, tmp_path: Path) -> None:
    files = sorted((colours / "red").glob("*.png"))[:2]
    rows = json.loads(cli("predict", run, *files, "--json").out)
    assert [row["image"] for row in rows] == [str(file) for file in files]
    classifier = apd.load_run(run)
    square = classifier.encoder.info.preprocessing.apply(Image.open(files[0]).convert("RGB"))
    pixels = (
        torch.tensor(list(square.get_flattened_data()), dtype=torch.float32).T.reshape(1, 3, *square.size[::-1]) / 255
    )
    calibration = apd.Run.open(run).calibration
    temperature = 1.0 if calibration is None else calibration.temperature
    expected = (classifier(pixels) / temperature).softmax(-1)[0]
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


def test_zero_shot_with_other_sentences_around_the_class_name(
    cli: Cli, run: Path, shallow_folder: Path, colours: Path, tmp_path: Path
) -> None:
    sentences = ("a drawing of a {}.", "it's the {}.")
    options = [word for sentence in sentences for word in ("--template", sentence)]
    images = ("--data", colours, "--attack", "clean", "--limit", 4)
    answer = cli("evaluate", "--model", shallow_folder, *images, *options, "--folder", tmp_path / "kept")
    (record,) = (tmp_path / "kept").glob("*/classifier.json")
    assert json.loads(record.read_text())["templates"] == list(sentences)
    (line,) = (line for line in answer.err.splitlines() if line.startswith("Next: "))
    assert shlex.split(line)[-4:] == options
    for place in ((run,), ("--classifier", "tests.models:anything", "--model", shallow_folder)):
        check_error(cli("evaluate", *place, *images, *options), ["--template"])
    with refused("apd.load_data"):
        evaluate_zero_shot(str(shallow_folder), apd.load_data(colours), templates=sentences)
