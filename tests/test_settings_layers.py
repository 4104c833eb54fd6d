"""Layers of settings, and errors of any class of settings in one line."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field, ValidationError

from apd.settings.explain import explain, setting_names, source_of
from apd.settings.layers import leaves, merged, with_path, without_path
from apd.util.section import Section

from .refusals import contains, meant, refused


class Part(Section):
    size: int = Field(1, ge=1)
    names: tuple[str, ...] = ()


class Whole(Section):
    part: Part = Part()
    parts: dict[str, Part] = Field({})
    several: tuple[Part, ...] | None = None
    free: dict[str, Any] = Field({})


def test_the_later_layer_wins_and_none_is_changed() -> None:
    layers = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}}, {"d": {"e": 5}}
    assert merged(*layers) == {"a": {"b": 4, "c": 2}, "d": {"e": 5}}
    assert layers[0] == {"a": {"b": 1, "c": 2}, "d": 3}
    raw = {"a": {"b": 1}}
    assert with_path(raw, "a.c.d", 2) == {"a": {"b": 1, "c": {"d": 2}}}
    assert without_path(raw, "a.b") == {"a": {}} and without_path(raw, "a.x.y") == without_path(raw, "z") == raw
    assert raw == {"a": {"b": 1}} and list(leaves(raw)) == ["a.b"]


def test_a_value_is_no_section_unless_a_bare_word_stands_for_it() -> None:
    assert with_path({"a": "x"}, "a.b", 1, main={"a": "name"}) == {"a": {"name": "x", "b": 1}}
    with refused("--set a.b=1", "'x'"):
        with_path({"a": "x"}, "a.b", 1, source="--set a.b=1")


def test_names_of_settings_reach_into_containers_and_flat_sections() -> None:
    names = setting_names(Whole)
    assert {"part.size", "parts.*.size", "several.*.names.*", "free.*"} <= set(names)
    assert {"size", "names.*"} <= set(setting_names(Whole, {"part": Part})) - {"part.size"}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"prat": 1}, ["'prat'", meant("part")]),
        ({"part": {"sise": 1}}, ["'part.sise'", meant("part.size")]),
        ({"parts": {"one": {"sise": 1}}}, ["'parts.one.sise'", meant("parts.one.size")]),
        ({"several": [{}, {"size": 0}]}, ["several.1.size", "0"]),
        ({"part": {"names": [1]}}, ["part.names.0", "1"]),
        ({"part": {"size": 0}, "several": 3}, ["part.size", "here", "1"]),
    ],
)
def test_errors_name_setting_value_and_place(raw: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValidationError) as error:
        Whole.model_validate(raw)
    message = explain(error.value, setting_names(Whole), places={"part.size": "here"})
    assert "\n" not in message and contains(message, *words)


def test_the_nearest_place_around_a_setting_is_its_source() -> None:
    with pytest.raises(ValidationError) as error:
        Whole.model_validate({"part": {"size": 0}})
    names = setting_names(Whole)
    assert source_of(error.value, names, {"part": "file", "part.size": "flag", "free": "x"}) == "flag"
    assert source_of(error.value, names, {"part": "file"}) == "file"
    assert source_of(error.value, names, {"free": "x"}) is None
