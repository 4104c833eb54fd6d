"""Training without any label: class names and images alone, taught by the frozen teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import apd
from apd.bench import load_suite
from apd.data import Dataset, load_data
from apd.data.dataset import UNKNOWN
from apd.data.settings import Which
from apd.models import DualEncoder
from apd.models.classifier import PromptedCLIP
from apd.runs.config import load_config
from tests.command_line import Cli, Said
from tests.models import save_colours
from tests.refusals import check_error, contains, refused

NAMES = ("red", "green", "blue")
QUICK = {"epochs": 2, "batch_size": 8, "eps": "4/255", "validate_every": 1, "checkpoint_every": 1, "device": "cpu"}
SMALL = {"text_tokens": 2, "visual_tokens": 2}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images in folders whose names are no classes."""
    return save_colours(tmp_path / "photos", per_class=8)


def train(path: Path, clip: DualEncoder, data: Dataset, method: str = "apd", **settings: object) -> apd.Run:
    section = {"name": method, "prompts": {"text_tokens": 2} if method == "advpt" else SMALL, **settings}
    return apd.train(clip, data, method=section, output=path, **QUICK)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_class_names_and_images_make_a_data_set(tmp_path: Path, photos: Path) -> None:
    listing = tmp_path / "classes.txt"
    listing.write_text("\ufeffred\n\n green \nblue\n", encoding="utf-8")
    data = load_data(photos, shots=0, class_names=listing)
    assert data.class_names == NAMES and len(data.train) == len(data.test) == 0
    # 3 classes of 4 are more than a fifth of 24.
    assert (len(data.val), len(data.unlabelled)) == (4, 20)
    assert not set(data.val.ids) & set(data.unlabelled.ids)
    assert {*data.val.labels.tolist(), *data.unlabelled.labels.tolist()} == {UNKNOWN}
    again = load_data(photos, shots=0, class_names=NAMES)
    assert again.val.ids == data.val.ids != load_data(photos, shots=0, class_names=NAMES, seed=1).val.ids
    assert len(load_data(photos, shots=0, class_names=NAMES, validation=1).val) == 3
    assert data.classes("base").class_names == NAMES[:2] and len(data.classes("base").val) == 4


@pytest.mark.parametrize(("which", "names"), [("base", ("red", "green")), ("new", ("blue", "black"))])
def test_half_of_the_classes_of_a_list(photos: Path, which: Which, names: tuple[str, ...]) -> None:
    data = load_data(photos, shots=0, class_names=["red", "green", "blue", "black"], classes=which)
    assert data.class_names == names and data.settings.classes == which
    assert len(data.unlabelled) + len(data.val) == 24, "no image is known to be of another class"


def test_validation_images_are_of_the_classes_that_are_trained(tmp_path: Path) -> None:
    folder = save_colours(tmp_path / "colours", per_class=20, classes=("red", "green", "blue", "dark"))
    data = load_data(folder, shots=0, unlabelled="rest", classes="new", validation=1)
    assert len(data.val) == 2 == len(data.class_names), "one for each class that is left"
    assert {*data.val.labels.tolist(), *data.unlabelled.labels.tolist()} <= {0, 1}


def test_numbers_and_wordnet_ids_are_no_part_of_the_names(tmp_path: Path, photos: Path) -> None:
    for lines in (
        ("n01440764 tench", "n01443537 goldfish"),
        ("n01440764,tench", 'n01443537,"goldfish"'),
        ("0,tench", "1,goldfish"),
        ("2: goldfish", "1: tench"),
        ("1\ttench", "2\tgoldfish"),
        ("1) tench", "2) goldfish"),
    ):
        (tmp_path / "ids.txt").write_text("\n".join(lines))
        assert load_data(photos, shots=0, class_names=tmp_path / "ids.txt").class_names == ("tench", "goldfish"), lines
    for names in (("2 euros", "5 euros"), ("1 way", "2 way"), ("bow, arrow", "n01440764,tench")):
        (tmp_path / "ids.txt").write_text("\n".join(names))
        assert load_data(photos, shots=0, class_names=tmp_path / "ids.txt").class_names == names, "part of the name"
    (tmp_path / "ids.txt").write_text("id,name\n0,tench\n1,goldfish\n")
    with refused("'id,name'", "remove"):
        load_data(photos, shots=0, class_names=tmp_path / "ids.txt")


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["class_names", "shots", "16"]),
        ({"shots": 0, "unlabelled": "rest"}, ["class_names", "unlabelled"]),
        ({"shots": 0, "class_names": "nowhere.txt"}, ["nowhere.txt"]),
        ({"shots": 0, "class_names": "base"}, ["base", "data.classes"]),
        ({"shots": 0, "class_names": ["red"]}, ["red"]),
        ({"shots": 0, "class_names": ["red", "Red"]}, ["red", "2"]),
        ({"shots": 0, "unlabelled_limit": 4}, ["4", "5"]),
    ],
)
def test_what_does_not_go_together_is_refused(photos: Path, settings: dict[str, object], names: list[str]) -> None:
    with refused(*names):
        load_data(photos, **{"class_names": NAMES, **settings})


def test_with_shots_0_a_data_set_lends_its_names_and_test_images_only(colours: Path, photos: Path) -> None:
    whole, data = load_data(colours, shots="all"), load_data(colours, shots=0, unlabelled="rest")
    assert len(data.train) == 0 and data.test.ids == whole.test.ids and data.class_names == whole.class_names
    assert {*data.val.ids, *data.unlabelled.ids} <= {*whole.train.ids, *whole.val.ids}
    assert len(data.val) == (len(data.val) + len(data.unlabelled)) // 5
    other = load_data(colours, shots=0, unlabelled=photos)
    assert {*other.val.ids, *other.unlabelled.ids} == {
        f"unlabelled/{p.parent.name}/{p.name}" for p in photos.rglob("*.png")
    }


@pytest.mark.parametrize("method", ["apd", "trades", "advpt"])
def test_no_label_is_looked_at(tmp_path: Path, shallow: DualEncoder, colours: Path, method: str) -> None:
    data = load_data(colours, shots=0, unlabelled="rest")
    wrong = {
        name: replace(part, labels=(part.labels + 1) % 3)
        for name, part in (("val", data.val), ("unlabelled", data.unlabelled))
    }
    one, other = (
        train(tmp_path / str(i), shallow, each, method) for i, each in enumerate((data, replace(data, **wrong)))
    )
    assert same(one.load_prompts(), other.load_prompts())
    assert one.manifest["summary"] == other.manifest["summary"]


def test_advpt_learns_from_unlabelled_images_beside_labelled_ones(
    tmp_path: Path, shallow: DualEncoder, colours: Path
) -> None:
    data = load_data(colours, shots=2, unlabelled="rest")
    without = replace(data, unlabelled=data.unlabelled.select([]))
    one, other = (train(tmp_path / str(i), shallow, each, "advpt") for i, each in enumerate((data, without)))
    assert not same(one.load_prompts(), other.load_prompts())


def test_metrics_are_of_the_agreement_with_the_frozen_teacher(
    tmp_path: Path, shallow: DualEncoder, photos: Path, said: Said
) -> None:
    data = load_data(photos, shots=0, class_names=NAMES)
    run = train(tmp_path / "run", shallow, data, teacher="auto", balance="auto")
    val = data.val.decode(shallow.info.preprocessing)
    guessed, expected = (
        model.bind_detached().logits(val.pixels()).argmax(-1)
        for model in (apd.load_run(run.path), PromptedCLIP(shallow, None, NAMES))
    )
    summary = run.manifest["summary"]
    assert summary["agreement_with_teacher_clean"] == pytest.approx(100 * float((guessed == expected).float().mean()))
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert any("agreement_with_teacher_robust" in line for line in lines)
    assert not any(name.startswith("val_") for line in (summary, *lines) for name in line)
    assert run.manifest["facts"] == {"balance": 1.0, "teacher": "frozen"}
    assert any(contains(line, "agreement") for line in said())
    assert run.config.data.class_names == NAMES


@pytest.mark.parametrize("settings", [{"teacher": "tuned"}, {"teacher": "mean"}, {"teacher": "online"}])
def test_teachers_that_need_labels_are_refused(
    tmp_path: Path, shallow: DualEncoder, photos: Path, settings: dict[str, str]
) -> None:
    data = load_data(photos, shots=0, class_names=NAMES)
    with refused("method.teacher", settings["teacher"], "frozen"):
        train(tmp_path / "run", shallow, data, **settings)
    with refused("method.adv_kl"):
        train(tmp_path / "run", shallow, data, adv_ce=1.0, adv_kl=0.0, inner="ce")


def test_promptkd_needs_labels_for_its_teacher(tmp_path: Path, shallow: DualEncoder, photos: Path) -> None:
    data = load_data(photos, shots=0, class_names=NAMES)
    with refused("promptkd", "data.shots=0", "teacher_model"):
        train(tmp_path / "run", shallow, data, "promptkd")
    with refused("promptkd", "data.shots=0", "teacher_model"):  # with the settings, before anything is loaded
        load_config(flags={"data.source": "nowhere", "data.unlabelled": "x", "data.shots": 0}, sets=["method=promptkd"])


def test_promptkd_is_judged_by_the_run_that_teaches_it(
    tmp_path: Path, shallow: DualEncoder, photos: Path, colours: Path
) -> None:
    labelled = load_data(colours, shots=4)
    clean = {"name": "vlp", "prompts": SMALL}
    optimizer = {"lr": 0.05}
    teacher = apd.train(shallow, labelled, method=clean, output=tmp_path / "clean", optimizer=optimizer, **QUICK)
    data = load_data(photos, shots=0, class_names=NAMES)
    run = train(tmp_path / "run", shallow, data, "promptkd", teacher_model=str(teacher.path))
    val = data.val.decode(shallow.info.preprocessing)
    models = (
        apd.load_run(run.path),
        apd.load_run(teacher.path).with_classes(NAMES),
        PromptedCLIP(shallow, None, NAMES),
    )
    own, known, zero_shot = (model.bind_detached().logits(val.pixels()).argmax(-1) for model in models)
    agreement, other = (100 * float((own == answers).float().mean()) for answers in (known, zero_shot))
    assert run.manifest["summary"]["agreement_with_teacher_clean"] == pytest.approx(agreement)
    assert agreement != other, "else the images could not tell which of them was asked"


def test_the_command_line_trains_and_says_what_evaluation_needs(
    tmp_path: Path, cli: Cli, shallow_folder: Path, photos: Path, colours: Path
) -> None:
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    quick = ("--model", shallow_folder, "--epochs", 1, "--device", "cpu", "--set", "train.attack.steps=1")
    folder = tmp_path / "run"
    done = cli("train", photos, "--shots", 0, "--classes", tmp_path / "classes.txt", *quick, "--output", folder)
    assert done.code == 0 and "--data" in done.err, done.err
    check_error(cli("evaluate", folder, "--attack", "clean"), ["--data", "photos"])
    done = cli("evaluate", folder, "--attack", "clean", "--data", colours, "--json")
    assert done.code == 0 and json.loads(done.out)["n"] == len(load_data(colours, shots=1).test)
    check_error(cli("evaluate", folder, "--data", colours, "--split", "all"), ["all"])


def test_a_run_is_evaluated_where_its_unlabelled_images_are_gone(
    tmp_path: Path, cli: Cli, shallow_folder: Path, photos: Path, colours: Path
) -> None:
    quick = ("--model", shallow_folder, "--epochs", 1, "--device", "cpu", "--set", "train.attack.steps=1")
    folder = tmp_path / "run"
    done = cli("train", colours, "--shots", 0, "--unlabelled", photos, *quick, "--output", folder)
    assert done.code == 0, done.err
    photos.rename(tmp_path / "moved")
    assert cli("evaluate", folder, "--attack", "clean").code == 0
    check_error(cli("evaluate", folder, "--attack", "clean", "--split", "val"), ["val", "--data"])


def test_a_suite_takes_no_data_without_labels(tmp_path: Path, shallow_folder: Path, colours: Path) -> None:
    def suite(data: str, row: str, more: str = "") -> Path:
        file = tmp_path / "suite.yaml"
        file.write_text(
            f"model: {shallow_folder}\ndata: {{c: {{source: {colours}, {data}}}}}\nmethods: {{a: {{name: apd{row}}}}}\n"
            f"blocks: [{{protocol: few-shot, data: c, methods: a}}]\n{more}"
        )
        return file

    with refused("class_names"):
        load_suite(suite("shots: 0, class_names: [a, b]", ""))
    row = ", data: {unlabelled: rest, shots: 0}"
    with refused("methods.a", "split"):
        load_suite(suite("shots: 2", row, "split: val\n"))
    assert load_suite(suite("shots: 2", row)).extra_data("a")["shots"] == 0
    with refused("methods.a", "teacher"):
        load_suite(suite("shots: 2", f"{row}, teacher: tuned"))


def test_runs_without_these_settings_do_not_name_them(colours: Path) -> None:
    record = load_config(flags={"data.source": str(colours)}).model_dump(mode="json")["data"]
    assert not record.keys() & {"unlabelled", "unlabelled_limit", "class_names"}


def test_a_run_is_judged_on_its_own_source_where_that_has_labels(
    tmp_path: Path, shallow: DualEncoder, colours: Path, said: Said
) -> None:
    run = train(tmp_path / "run", shallow, load_data(colours, shots=0, class_names=NAMES))
    how = {"attacks": "clean", "limit": 6, "device": "cpu"}
    with refused("no labelled images of its own"):
        apd.evaluate_run(run.path, **how)
    found = apd.evaluate_run(run.path, data=str(colours), split="train", **how)
    assert found.own_data is False and set(found.class_names) == set(NAMES)
    assert any(contains(line, "was trained on", "training images") for line in said()), said()
