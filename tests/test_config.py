"""One schema: precedence, round trip, and errors that name the setting, the place and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from apd.errors import InputError
from apd.methods import METHODS
from apd.runs.config import FLAGS, RunConfig, load_config, validate

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
    assert set(FLAGS) <= leaves(yaml.safe_load(config.to_yaml())), "a flag stands for a setting of the schema"


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


def test_sections_are_frozen() -> None:
    config = load_config(flags=DATA)
    with pytest.raises(ValueError, match="frozen"):
        config.train.epochs = 3


BAD = [
    ({"train.eps": "4"}, [], ["got 4", "4/255", "--eps"]),
    ({"train.eps": "-1/255"}, [], ["eps", "-1/255", "--eps"]),
    ({"method.name": "adp"}, [], ["'adp'", "Did you mean apd?"]),
    ({"train.epochs": 0}, [], ["train.epochs", "--epochs", "got 0"]),
    ({"data.shots": "many"}, [], ["data.shots", "--shots", "'many'"]),
    ({"data.shots": "0"}, [], ["data.shots", "'0'"]),
    ({}, ["train.epoch=3"], ["'train.epoch'", "--set train.epoch=3", "Did you mean train.epochs?"]),
    ({}, ["trian.epochs=3"], ["'trian'", "Did you mean train?"]),
    ({}, ["train.optimizer.lrr=1"], ["Did you mean train.optimizer.lr?"]),
    ({}, ["method.teacer=online"], ["Did you mean method.teacher?"]),
    ({}, ["method.prompts.text_token=2"], ["Did you mean method.prompts.text_tokens?"]),
    ({}, ["method.teacher=offline"], ["method.teacher", "'offline'", "--set method.teacher=offline"]),
    ({}, ["method.feedback=1"], ["method.teacher=online"]),
    ({"method.name": "ADVVLP"}, [], ["--method: No method 'ADVVLP'. Did you mean advvlp?"]),
    ({}, ["adv_kl=1"], ["Unknown setting 'adv_kl' (from --set adv_kl=1). Did you mean method.adv_kl?"]),
    ({}, ["lr=1"], ["Did you mean train.optimizer.lr?"]),
    ({}, ["train.name=sgd"], ["Did you mean train.optimizer.name?"]),
    ({}, ["method.zzz=1"], ["Unknown setting 'method.zzz'", "Known: method.name, "]),
    ({"method.name": "fap"}, ["method.beta=1"], ["Unknown setting 'method.beta'", "Known: method.name, "]),
    ({}, ["train.optimizer=3"], ["train.optimizer", "got 3"]),
    ({}, ["train=3", "train.epochs=3"], ["train is not a section"]),
    ({}, ["train.epochs"], ["NAME=VALUE"]),
    ({}, ["train.epochs=[1"], ["not YAML"]),
    ({}, ["train.epochs=x", "train.seed=y"], ["And 1 more"]),
]


@pytest.mark.parametrize(("flags", "sets", "words"), BAD)
def test_bad_settings_are_explained_in_one_line(flags: dict[str, Any], sets: list[str], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        load_config(flags={**DATA, **flags}, sets=sets)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_missing_data_is_asked_for() -> None:
    with pytest.raises(InputError, match=r"data\.source.*DATA"):
        load_config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {epohcs: 3}\ndata: digits\n", ["train.epohcs", "settings.yaml", "Did you mean train.epochs?"]),
        ("train: [", ["settings.yaml, line 1, column 9: not YAML: expected"]),
        (
            "train:\n  epochs: 3: 4\n",
            ["settings.yaml, line 2, column 12: not YAML: mapping values are not allowed here."],
        ),
        ("a: \0", ["settings.yaml: not YAML: unacceptable character"]),
        ("- 1\n", ["settings.yaml", "sections"]),
        ("data: digits\nmethod: {name: advvlp, teacher: tuned}\n", ["method.teacher", "settings.yaml"]),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        load_config(file)
    for word in words:
        assert word in str(error.value)
    assert not any(odd in str(error.value) for odd in ("\n", "^", "<unicode string>"))
    with pytest.raises(InputError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml")


def test_an_unknown_method_is_blamed_on_the_flag_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("data: digits\nmethod: {name: apd, teacher: tuned}\n")
    with pytest.raises(InputError, match=r"^--method: No method 'adp'\. Did you mean apd\?$"):
        load_config(file, {"method.name": "adp"})
    file.write_text("data: digits\nmethod: {name: adp}\n")
    with pytest.raises(InputError, match=r"settings\.yaml: No method 'adp'\. Did you mean apd\?$"):
        load_config(file)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml", DATA) == RunConfig.model_validate({"data": {"source": "digits"}})


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
    weight = load_config(file, sets=["method.adv_kl=4", "method.variant=rslad"]).method.settings.model_dump()
    assert weight["adv_kl"] == 4
    control = load_config(file, {"method.name": "advvlp"}).method
    assert control.name == "advvlp" and control.settings.prompts.text_tokens == 2
