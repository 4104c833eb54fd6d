"""One section says what data is: `load_data`, a data set, run settings and suites share it."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest

from apd.bench.blocks import DataEntry
from apd.data import load_data
from apd.data.settings import DataSettings
from apd.runs.config import RunConfig

from .models import save_colours
from .refusals import refused


def test_load_data_has_no_option_that_the_section_lacks() -> None:
    assert set(inspect.signature(load_data).parameters) <= DataSettings.model_fields.keys()
    assert RunConfig.model_fields["data"].annotation is DataSettings and issubclass(DataEntry, DataSettings)


def test_a_data_set_carries_the_section_that_loads_it_again(colours: Path) -> None:
    data = load_data(colours, shots=2, seed=3, templates=["a {}"], classes="base", validation=1)
    assert data.settings == DataSettings(
        source=str(colours), shots=2, seed=3, templates=("a {}",), classes="base", validation=1
    )
    again = DataSettings.model_validate(data.settings.model_dump()).load(seed=9)
    assert (again.train.ids, again.val.ids, again.class_names) == (data.train.ids, data.val.ids, data.class_names)
    assert again.settings == data.settings


def test_the_seed_of_a_section_wins_over_the_runs(colours: Path) -> None:
    section = DataSettings(source=str(colours), shots=2)
    assert section.load(5).settings.seed == 5
    assert section.load(5).train.ids == load_data(colours, shots=2, seed=5).train.ids
    assert DataSettings(source=str(colours), shots=2, seed=1).load(5).settings.seed == 1


def test_a_path_is_never_read_as_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_data("digits", shots=1).source == "digits"
    with refused("./digits"):
        load_data(Path("digits"), shots=1)
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "state.json").write_text("{}")  # as of a saved data set
    assert load_data("digits", shots=1).source == "digits"


@pytest.mark.parametrize(
    "asked", [{"seed": 1.5}, {"seed": "x"}, {"seed": True}, {"seed": -1}, {"memory_gb": -1}, {"memory_gb": math.nan}]
)
def test_numbers_that_are_none_are_refused_at_once(asked: dict[str, Any]) -> None:
    ((name, value),) = asked.items()
    with refused(name, repr(value), "0 or more"):
        load_data("digits", shots=1, **asked)


def test_the_seed_of_the_section_is_one_that_the_draws_of_all_sources_take() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        DataSettings(source="digits", seed=-1)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"columns": 5}, ["columns", "5"]),
        ({"columns": {"image", "label"}}, ["columns"]),
        ({"templates": 5}, ["templates", "list", "5"]),
        ({"templates": {"a {}", "the {}"}}, ["templates", "set", "order"]),
        ({"shots": 0, "class_names": 5}, ["class_names", "list", "5"]),
        ({"shots": 0, "class_names": {"zero", "one"}}, ["class_names", "set", "order"]),
        ({"shots": 0, "class_names": {"zero": 0, "one": 1}}, ["class_names", "list"]),
        ({"shots": 0, "class_names": ["great-white", "Great  white"]}, ["class_names", "2", "hyphens"]),
        ({"shots": 0, "class_names": ["a", "a "]}, ["class_names", "2", "spaces"]),
    ],
)
def test_what_is_not_a_list_is_refused(tmp_path: Path, asked: dict[str, Any], words: list[str]) -> None:
    source = save_colours(tmp_path / "colours", per_class=8)
    with refused(*words):
        load_data(source, **{"shots": 1, **asked})


def test_a_sign_is_part_of_a_name(tmp_path: Path) -> None:
    source = save_colours(tmp_path / "colours", per_class=8)
    assert load_data(source, shots=0, class_names=["-1", "1"]).class_names == ("-1", "1")
    assert len(load_data(source, shots=0, class_names=["shift_-1", "shift_1"]).class_names) == 2
    assert load_data(source, shots=0, class_names={"a": 1, "b": 2}.keys()).class_names == ("a", "b")  # type: ignore[arg-type]
