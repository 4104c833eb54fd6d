"""Names and paths in hostile files: they lead nowhere else, end, and are shown as text."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

import apd
from apd.bench.report.rows import read_bench
from apd.data.sources.coop import load_coop
from apd.errors import ApdError, InputError
from apd.evaluation.images import read_index
from apd.runs.card import render_card
from apd.runs.folder import Run
from apd.util.text import cell

from .models import save_clip, save_colours
from .refusals import refused


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/secret.png", "a/../../secret.png", "C:\\secret.png", "..\\secret.png", "a" * 5000]
)
def test_split_files_name_images_of_their_folder_only(tmp_path: Path, path: str) -> None:
    save_colours(tmp_path / "images")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    fine = sorted(str(p.relative_to(tmp_path / "images")) for p in (tmp_path / "images").rglob("*.png"))
    train, test = [[fine[0], 0, "cat"], [fine[1], 1, "dog"]], [[fine[2], 0, "cat"], [fine[3], 1, "dog"]]
    file = tmp_path / "images" / "split_zhou_X.json"
    file.write_text(json.dumps({"train": train, "val": [], "test": test}))
    assert len(load_coop(file, str(file)).train) == 2
    file.write_text(json.dumps({"train": [[path, 0, "cat"], *train[1:]], "val": [], "test": test}))
    with refused("split_zhou_X.json", *([] if len(path) > 1000 else [path])):
        load_coop(file, str(file))


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/secret.png", "adversarial/../../secret.png", "clean/.."])
def test_indexes_of_kept_images_name_their_own_folder_only(tmp_path: Path, name: str) -> None:
    row = dict.fromkeys(("id", "label", "predicted_clean", "predicted_adversarial", "attack", "by", "pixels"), "a")
    image = {
        **row,
        "file": name,
        "clean_file": "clean/a.png",
        "eps": 0.1,
        "distance": 0.1,
        "max_error": 0.0,
        "changed": False,
    }
    (tmp_path / "index.json").write_text(json.dumps({"about": {}, "images": [image]}))
    with refused("index.json"):
        read_index(tmp_path / "index.json")


def test_plans_name_outcomes_of_their_own_folder_only(tmp_path: Path) -> None:
    row = {"protocol": "few-shot", "data": "d", "method": "m", "shots": 1, "seed": 0, "views": {}, "final": {}}
    for job in ("../../elsewhere", "a" * 5000):
        plan = {"suite": "s", "against": None, "entries": [{**row, "job": job}]}
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        with refused("plan.json", *(["'../../elsewhere'"] if "/" in job else [])):
            read_bench(tmp_path)


def test_shards_of_a_model_lie_in_its_folder(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "theirs")
    (folder / "model.safetensors").rename(tmp_path / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with refused("../other.safetensors"):
        apd.load_clip(folder)


@pytest.mark.parametrize("how", ["to itself", "to the folder above", "to another class", "deep"])
def test_loops_of_links_and_deep_folders_end(tmp_path: Path, how: str) -> None:
    top = save_colours(tmp_path / "photos")
    red = top / "red"
    if how == "to itself":
        (red / "loop").symlink_to("loop")
    elif how == "to the folder above":
        (red / "loop").symlink_to("..")
    elif how == "to another class":
        (red / "loop").symlink_to(top / "blue")
    else:
        place = red
        for _ in range(400):
            place = place / "a"
        os.makedirs(place)
    with refused("red"):
        apd.load_data(top)


def test_a_name_is_no_formula_and_no_escape_code_in_a_table() -> None:
    assert [cell(text) for text in ("=HYPERLINK(1)", "@a", "cat")] == ["'=HYPERLINK(1)", "'@a", "cat"]
    assert str(cell("\x1b[2J\n")).isprintable()


def test_names_do_not_reach_the_terminal_or_the_card_raw(run: Path) -> None:
    markdown = pytest.importorskip("markdown")
    evil = "\x1b[2J\x1b]0;owned\x07<script>alert(1)</script>|`\n# A title\n![x](http://example.org)"
    opened = Run.open(run)
    attacks = {evil: {"accuracy": 1.0, "interval": [0.0, 2.0]}}
    result = {
        "clean": 1.0,
        "clean_interval": [0.0, 2.0],
        "attacks": attacks,
        "worst": attacks[evil],
        "undefended": None,
    }
    result |= {
        "n": 1,
        "data": evil,
        "split": evil,
        "classes": "all",
        "norm": evil,
        "eps_text": "1/255",
        "seed": 0,
        "checks": [],
    }
    manifest = {**opened.manifest, "class_names": [evil, "cat"], "templates": [evil], "versions": {evil: evil}}
    manifest["model"] = {**opened.manifest["model"], "source": evil}
    card = render_card(run, manifest, opened.config, [result])
    assert "\x1b" not in card and "\x07" not in card
    page = markdown.markdown(card.split("---", 2)[2], extensions=["tables", "fenced_code"])
    assert page.count("<h1>") == 1 and not any(tag in page for tag in ("<script", "<img", "A title</h"))
    assert str(InputError(f"bad name {evil}")).isprintable() and str(ApdError("a\n b")) == "a b"
