"""Data, models, runs and results show themselves in short, and in notebooks as tables with all text escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import apd
from apd.evaluation.frozen import Subject
from apd.models import DualEncoder
from apd.models.classifier import PromptedCLIP
from apd.models.prompts import Prompts, PromptSpec
from apd.models.shown import ShownInShort, structure
from apd.runs.folder import Run

HOSTILE = "<script>alert(1)</script>\x1b[31m"


class Tags(HTMLParser):
    """Tags that are opened, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.opened: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.opened.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def page(thing: Any) -> Tags:
    found = Tags(thing._repr_html_())
    assert found.opened <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "div"}
    assert "\x1b" not in found.text and len(found.text) < 4000 and len(repr(thing)) < 500
    return found


def test_data_say_how_many_images_there_are_of_which_classes(colours: Path) -> None:
    data = apd.load_data(colours, shots=4, unlabelled="rest")
    assert f"{len(data.train)} train" in repr(data) and f"{len(data.unlabelled)} unlabelled" in repr(data)
    assert f"({len(data.train)} images)" in repr(data.train)
    odd = replace(data, name=HOSTILE, class_names=(HOSTILE, *data.class_names[1:]))
    text = page(odd).text
    assert "<script>" in text and "green" in text and str(colours) in text
    assert "unlabelled" in text and "unlabelled" not in page(apd.load_data(colours, shots=4)).text
    assert "labels  3" in re.sub(r"\s+", "  ", page(data.train).text)
    decoded = repr(data.train.decode(apd.models.Preprocessing.plain(8)))
    assert "(12 images)" in decoded and "(3, 8, 8)" in decoded and len(decoded) < 200


def test_models_say_what_they_are(clip: DualEncoder) -> None:
    prompts = Prompts.initial(PromptSpec(text_tokens=2, visual_tokens=3), clip)
    model = PromptedCLIP(clip, prompts, ["cat", "<b>dog"])
    for thing, told in ((clip, "16 px"), (prompts, "3 visual tokens"), (model, "2 text tokens")):
        assert told in page(thing).text and told in repr(thing) and "\n" not in repr(thing)
    assert "hand-written" in repr(model.zero_shot())
    assert repr(torch.nn.Sequential(model)).count("\n") == 2


@pytest.fixture
def plain_text(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if models had no short form."""
    with monkeypatch.context() as patch:
        patch.delattr(ShownInShort, "__repr__")
        yield


def test_what_outcomes_are_kept_under_does_not_depend_on_how_models_show_themselves(
    clip: DualEncoder, request: pytest.FixtureRequest
) -> None:
    model = PromptedCLIP(clip, Prompts.initial(PromptSpec(text_tokens=2, visual_tokens=3), clip), ["cat", "dog"])
    short, full, fingerprint = repr(model), structure(model), Subject.of(model).fingerprint
    request.getfixturevalue("plain_text")
    assert full == repr(model) != short and fingerprint == Subject.of(model).fingerprint


def test_a_run_shows_its_settings_and_evaluations(run: Path) -> None:
    result = apd.evaluate_run(run, attacks="pgd-2", limit=6, checks=False, quiet=True)
    opened = Run.open(run)
    text = page(opened).text
    assert str(run) in repr(opened) and "unfinished" not in repr(opened)
    for told in (str(run), "apd", "pgd-2", f"{result.clean:.2f}", f"{result.worst.accuracy:.2f}", "red"):
        assert told in text
    manifest = json.loads((run / "run.json").read_text())
    manifest["class_names"][0] = HOSTILE
    (run / "run.json").write_text(json.dumps(manifest))
    assert "<script>" in page(Run.open(run)).text


def test_a_result_shows_both_classifiers(run: Path) -> None:
    result = apd.evaluate_run(run, attacks="pgd-2", limit=6, checks=False, quiet=True)
    assert f"{result.clean:.2f} % clean" in repr(result) and f"{result.worst.accuracy:.2f} %" in repr(result)
    assert result.undefended is not None
    text = page(result).text
    for value in (result.clean, result.attacks["pgd-2"].accuracy, result.undefended.clean, result.clean_interval[0]):
        assert f"{value:.2f}" in text
    assert "<b>" in page(result.model_copy(update={"data": "<b>"})).text
