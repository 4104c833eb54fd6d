"""One schema: precedence, round trip, and errors that name the setting, the place and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from apd.data.settings import DataSettings
from apd.methods import METHODS
from apd.runs.config import FLAGS, load_config, validate
from apd.util.yaml_files import dump_yaml, parse_yaml

from .refusals import meant, refused

DATA = {"data.source": "digits"}


def leaves(record: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted names of all values of a nested mapping."""
    names = set()
    for key, value in record.items():
        names |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"}
    return names


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("data: {source: photos, shots: 1}\ntrain: {epochs: 1, seed: 1, optimizer: {lr: 0.1}}\n")
    config = load_config(file, {"train.epochs": 2, "train.seed": 2, "data.shots": None}, ["train.seed=3"])
    assert (config.data.shots, config.train.optimizer.lr) == (1, 0.1), (
        "the file's values stay where nothing else is said"
    )
    assert config.train.epochs == 2, "a flag wins over the file"
    assert config.train.seed == 3, "--set wins over both"
    assert config.data.source == "photos"


@pytest.mark.parametrize("method", METHODS)
def test_yaml_holds_every_setting_and_reads_back(tmp_path: Path, method: str) -> None:
    config = load_config(
        flags={**DATA, "method.name": method, "train.eps": 2 / 255},
        sets=["method.prompts.text_depth=2", "train.optimizer.clip=null", "data.templates=['a {}.', 'the {}.']"],
    )
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert load_config(file) == config
    assert load_config(file).train.optimizer.clip is None
    recorded = set(FLAGS) - {f"data.{name}" for name in DataSettings.unrecorded}
    assert recorded <= leaves(yaml.safe_load(config.to_yaml())), "a flag stands for a setting of the schema"
    assert all(flag.removeprefix("data.") in DataSettings.model_fields for flag in set(FLAGS) - recorded)


def test_every_leaf_of_yaml_can_be_set_by_flag() -> None:
    config = load_config(flags=DATA)
    raw = yaml.safe_load(config.to_yaml())

    def value(name: str) -> Any:
        found: Any = raw
        for part in name.split("."):
            found = found[part]
        return found

    sets = [f"{name}={yaml.safe_dump(value(name), default_flow_style=True)}" for name in sorted(leaves(raw))]
    sets = [item.replace("\n...", "").strip() for item in sets]
    assert load_config(sets=sets) == config


def test_eps_is_kept_as_text() -> None:
    assert "eps: 4/255" in load_config(flags={**DATA, "train.eps": "4/255"}).to_yaml()
    assert load_config(flags={**DATA, "train.eps": 0.5}).train.threat.eps == 0.5


def test_a_bare_word_names_method_and_data() -> None:
    config = validate({"method": "advvlp", "data": "digits"})
    assert (config.method.name, config.data.source) == ("advvlp", "digits")
    with_setting = load_config(flags={**DATA}, sets=["method=apd", "method.teacher=online"])
    assert with_setting.method.model_dump()["teacher"] == "online"


def test_endless_room_and_a_margin_without_end_are_settings() -> None:
    config = load_config(
        flags={"data.source": "digits"},
        sets=["data.memory_gb=.inf", "train.attack.stop_margin=.inf", "method.inner=ce"],
    )
    assert config.data.memory_gb == config.train.attack.stop_margin == float("inf")


def test_sections_are_frozen() -> None:
    config = load_config(flags=DATA)
    with pytest.raises(ValidationError) as told:
        config.train.epochs = 3
    assert [error["type"] for error in told.value.errors()] == ["frozen_instance"]


def test_a_number_with_an_exponent_is_one_and_text_like_it_stays_text() -> None:
    """Where the type is not known, as in options, YAML decides; PyYAML takes 5e-1 for text, and everybody writes it so."""
    attack = load_config(flags=DATA, sets=["train.attack.kind=n-fgsm", "train.attack.options.noise=5e-1"]).train.attack
    assert attack.options == {"noise": 0.5}
    for written, meant_by_it in (
        ("1.5e3", 1500.0),
        ("+2E5", 2e5),
        (".5e1", 5.0),
        ("e3", "e3"),
        ("1e-3/255", "1e-3/255"),
    ):
        assert parse_yaml(written, "here") == meant_by_it
    values = {"text": "1e5", "number": 1e-7, "rest": ["1.5e3", 2.0, "on"]}
    assert parse_yaml(dump_yaml(values), "here") == values


BAD = [
    ({"train.eps": "0.6"}, ["train.attack.kind=n-fgsm"], ["eps=0.6", "--eps", "n-fgsm", "pgd"]),
    ({"train.eps": "4"}, [], ["4", "4/255", "--eps"]),
    ({"train.eps": "-1/255"}, [], ["eps", "-1/255", "--eps"]),
    ({"method.name": "adp"}, [], ["'adp'", meant("apd")]),
    ({"train.epochs": 0}, [], ["train.epochs", "--epochs", "0"]),
    ({"data.shots": "many"}, [], ["data.shots", "--shots", "'many'"]),
    ({"data.shots": "0"}, [], ["data.shots=0"]),
    ({}, ["train.epoch=3"], ["'train.epoch'", "--set train.epoch=3", meant("train.epochs")]),
    ({}, ["trian.epochs=3"], ["'trian'", meant("train")]),
    ({}, ["train.optimizer.lrr=1"], [meant("train.optimizer.lr")]),
    ({}, ["method.teacer=online"], [meant("method.teacher")]),
    ({}, ["method.prompts.text_token=2"], [meant("method.prompts.text_tokens")]),
    ({}, ["method.teacher=offline"], ["method.teacher", "'offline'", "--set method.teacher=offline"]),
    ({}, ["method.feedback=1"], ["method.teacher=online"]),
    ({"method.name": "ADVVLP"}, [], ["--method", "'ADVVLP'", meant("advvlp")]),
    ({}, ["adv_kl=1"], ["'adv_kl'", "--set adv_kl=1", meant("method.adv_kl")]),
    ({}, ["lr=1"], [meant("train.optimizer.lr")]),
    ({}, ["train.epochs=2", "train.warmup_epochs=3"], ["train.warmup_epochs=3", "train.epochs=2"]),
    ({"method.name": "advvp"}, ["method.prompts.words=a photo"], ["method.prompts.words", "text tokens"]),
    ({}, ["method.prompts={text_tokens: 0, between: of a}"], ["method.prompts.between", "text tokens"]),
    ({"data.shots": "0"}, ["data.unlabelled=rest", "method.teacher=probe"], ["method.teacher=probe", "frozen"]),
    (
        {"data.shots": "0", "method.name": "trades"},
        ["data.unlabelled=rest", "train.pseudo_labels=probe"],
        ["train.pseudo_labels"],
    ),
    ({}, ["train.name=sgd"], [meant("train.optimizer.name")]),
    ({}, ["method.zzz=1"], ["'method.zzz'", "method.name", "method.adv_kl"]),
    ({"method.name": "fap"}, ["method.beta=1"], ["'method.beta'", "method.name", "method.weight"]),
    ({}, ["train.optimizer=3"], ["--set train.optimizer=3", "3"]),
    ({}, ["train=3", "train.epochs=3"], ["--set train.epochs=3", "3"]),
    ({}, ["train.epochs"], ["--set 'train.epochs'", "NAME=VALUE"]),
    ({}, ["train.epochs=[1"], ["'train.epochs=[1'", "YAML"]),
    ({}, ["train.epochs=x", "train.seed=y"], ["train.epochs", "'x'", "1"]),
]


@pytest.mark.parametrize(("flags", "sets", "names"), BAD)
def test_bad_settings_are_explained_in_one_line(flags: dict[str, Any], sets: list[str], names: list[str]) -> None:
    with refused(*names):
        load_config(flags={**DATA, **flags}, sets=sets)


def test_missing_data_is_asked_for() -> None:
    with refused("data.source", "DATA", "--config"):
        load_config()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("train: {epohcs: 3}\ndata: digits\n", ["'train.epohcs'", meant("train.epochs")]),
        ("train: [", ["1", "9", "YAML"]),
        ("train:\n  epochs: 3: 4\n", ["2", "12", "YAML"]),
        ("a: \0", ["YAML", "#x0000"]),
        ("- 1\n", ["'train:'", "list"]),
        ("data: digits\nmethod: {name: advvlp, teacher: tuned}\n", ["'method.teacher'", "method.clean"]),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, names: list[str]) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with refused(str(file), *names) as error:
        load_config(file)
    assert not any(odd in str(error.value) for odd in ("^", "<unicode string>"))
    with refused("none.yaml"):
        load_config(tmp_path / "none.yaml")


def test_an_unknown_method_is_blamed_on_the_flag_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("data: digits\nmethod: {name: apd, teacher: tuned}\n")
    with refused("--method", "'adp'", meant("apd")) as error:
        load_config(file, {"method.name": "adp"})
    assert str(file) not in str(error.value)
    file.write_text("data: digits\nmethod: {name: adp}\n")
    with refused(str(file), "'adp'", meant("apd")) as error:
        load_config(file)
    assert "--method" not in str(error.value)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml", DATA) == validate({"data": "digits"})


def test_another_method_or_variant_leaves_the_old_ones_settings_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    saved = load_config(
        flags={"data.source": "digits"}, sets=["method.adv_kl=3", "method.tau=2", "method.prompts.text_tokens=2"]
    )
    file.write_text(saved.to_yaml())

    same = load_config(file, {"method.name": "apd"})
    assert same == saved
    variant = load_config(file, sets=["method.variant=rslad"]).method.settings.model_dump()
    assert variant["adv_kl"] == pytest.approx(5 / 6) and variant["inner"] == "teacher-kl" and variant["tau"] == 2
    assert saved.method.settings.model_dump()["teacher"] == "best" and variant["teacher"] == "frozen"
    weight = load_config(file, sets=["method.adv_kl=4", "method.variant=rslad"]).method.settings.model_dump()
    assert weight["adv_kl"] == 4
    control = load_config(file, {"method.name": "advvlp"}).method
    assert control.name == "advvlp" and control.settings.prompts.text_tokens == 2
    named = load_config(flags={"data.source": "digits"}, sets=["method.teacher=probe"])
    file.write_text(named.to_yaml())
    with refused(str(file), "method.teacher=probe", "frozen"):
        load_config(file, sets=["method.variant=rslad"])


@pytest.mark.parametrize("name", ["train.epochs", "train.swa", "data.shots", "train.optimizer.lr"])
def test_a_switch_is_not_a_number(name: str) -> None:
    with refused(name, "number", "True"):
        load_config(flags=DATA, sets=[f"{name}=yes"])
