"""Accuracy under other words: edits keep to their threat, and every figure is what a slow loop over wordings gives."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from string import ascii_lowercase
from typing import Any

import pytest
import torch
from torch import Tensor

import apd
from apd import attacks
from apd.errors import InputError
from apd.evaluation.wording.edits import Editor, edited, levenshtein, words_of
from apd.evaluation.wording.measure import evaluate_wording
from apd.evaluation.wording.variants import Sources, read_synonyms
from apd.models.prompts import Prompts
from tests.command_line import Cli
from tests.toys import ToyCLIP, pictures, toy_clip

NAMES = ["a", "b", "c"]
OPTIONS: dict[str, Any] = {"eps": 0.05, "attack": "pgd-3", "limit": "all", "quiet": True}


@pytest.fixture
def toy() -> apd.PromptedCLIP:
    return apd.PromptedCLIP(ToyCLIP(toy_clip(3).weight.detach()), None, NAMES)


@pytest.fixture
def data() -> apd.Dataset:
    pair = pictures(30, 3, seed=5)
    return apd.Dataset.from_tensors("pictures", NAMES, pair, pair)


@pytest.mark.parametrize("distance", [1, 2])
def test_typos_keep_to_the_threat_and_are_the_same_again(distance: int) -> None:
    names = ["cat", "car", "annual crop land"]
    editor = Editor(names, distance, {"bat", "cats"})
    seen = set()
    for number in range(40):
        found = editor.typos(f"0/{number}")
        assert found == editor.typos(f"0/{number}") and len(set(found)) == 3
        for name, original in zip(found, names, strict=True):
            assert 1 <= levenshtein(name, original) <= distance
            assert not (words_of([name]) - words_of([original])) & {
                "bat",
                "cats",
                "cat",
                "car",
                "land",
                "annual",
                "crop",
            }
        seen.add(found)
    assert len(seen) > 30


def test_no_typo_makes_another_class() -> None:
    editor = Editor(["cat", "car"])
    assert not editor.allowed("car", "cat") and not editor.allowed("cat", "cat") and editor.allowed("cxt", "cat")
    assert not Editor(["one"], 1, {"tone"}).allowed("tone", "one")
    # A name of one letter has no edit that leaves a word of another meaning out, if all letters are classes.
    full = Editor(list("abcdefghijklmnopqrstuvwxyz"))
    assert not full.allowed("b", "a") and full.allowed("ab", "a")


def test_search_takes_the_place_where_a_space_does_most_then_the_best_letter() -> None:
    def features(names: Any) -> Tensor:
        return torch.tensor([[float(sum(map(ord, name))), float(sum(map(ord, name[1:])))] for name in names])

    def distance(one: str, other: str) -> float:
        return float((features([one]) - features([other])).square().sum())

    names = ["mxm", "nan"]
    editor = Editor(names)
    found = editor.searched(features, 100, "0")
    for name, original in zip(found, names, strict=True):
        place = max(range(7), key=lambda place: distance(edited(original, place, " "), original))
        letters = [*ascii_lowercase, *([""] if place % 2 else [])]
        options = [one for letter in letters if editor.allowed(one := edited(original, place, letter), original)]
        assert name in options and distance(name, original) == max(distance(one, original) for one in options)


@pytest.mark.parametrize("distance", [1, 2])
def test_search_keeps_names_apart_that_differ_in_one_character(distance: int) -> None:
    def features(names: Any) -> Tensor:
        assert len({*names}) == len(names)
        return torch.tensor([[float(ord(name[6])) if len(name) == 7 else 50.0] for name in names])

    names = ["class 1", "class 2", "class 3", "class 4"]  # each goes farthest as "class z"
    found = Editor(names, distance).searched(features, 100, "0")
    assert len({*found}) == len(names) and found != tuple(names)


def test_search_moves_features_farther_than_chance(tmp_path: Path) -> None:
    clip = apd.load_clip("glyphs")
    classifier = apd.PromptedCLIP(clip, None, ["zero", "one", "two", "three"], ["a photo of the digit {}."])
    sources = Sources(n=2, candidates=8)

    def moved(kind: str) -> list[float]:
        clean = classifier.class_features()
        found = sources.variants(kind, classifier)
        return [float((one.of(classifier).class_features() - clean).square().sum()) for one in found]

    assert min(moved("edits")) > max(moved("typos"))


def test_figures_are_those_of_a_slow_loop(toy: apd.PromptedCLIP, data: apd.Dataset, tmp_path: Path) -> None:
    file = tmp_path / "synonyms.yaml"
    file.write_text("a: [x b, x a]\nb: [y a]\n")  # the first swaps two classes, the second renames one
    found = evaluate_wording(toy, data, synonyms=file, changes="synonyms", store=tmp_path / "kept", **OPTIONS)
    again = evaluate_wording(toy, data, synonyms=file, changes="synonyms", store=tmp_path / "kept", **OPTIONS)
    assert again.changes == found.changes and again.clean == found.clean
    wordings = [["x b", "y a", "c"], ["x a", "b", "c"]]
    change = found.changes["synonyms"]
    assert [list(one.class_names) for one in change.variants] == wordings
    decoded = data.test.decode(toy.encoder.info.preprocessing)
    x, labels, ids = decoded.pixels(), decoded.labels, decoded.ids
    threat = attacks.ThreatModel(0.05)

    def under(model: apd.PromptedCLIP, images: Tensor) -> Tensor:
        return model.frozen()(images).argmax(-1) == labels

    def attacked(model: apd.PromptedCLIP) -> Tensor:
        right = under(model, x)
        batch = attacks.AttackBatch(x, labels, ids).select(right.nonzero().flatten())
        images = x.clone()
        images[right] = attacks.find("pgd-3")(model.frozen(), batch, threat).images
        return images

    models = [toy, *(toy.with_classes(names) for names in wordings)]
    moved = attacked(toy)
    clean = torch.stack([under(model, x) for model in models])
    transferred = torch.stack([under(model, x) & under(model, moved) for model in models])
    joint = torch.stack([under(model, x) & under(model, attacked(model)) for model in models])
    assert found.clean.accuracy == pytest.approx(100 * float(clean[0].float().mean()), abs=0.01)
    for name, right in (("clean", clean), ("transferred", transferred), ("joint", joint)):
        summary = getattr(change, name)
        shares = 100 * right[1:].float().mean(dim=1)
        assert summary.mean == pytest.approx(float(shares.mean()), abs=0.01)
        assert summary.worst_words.accuracy == pytest.approx(float(shares.min()), abs=0.01)
        assert summary.worst_case.accuracy == pytest.approx(100 * float(right.all(dim=0).float().mean()), abs=0.01)
    assert change.clean.worst_words.accuracy < 40 < change.clean.mean  # swapped names are wrong on two of three classes
    assert found.undefended is not None and found.undefended.changes == found.changes


def test_prompts_of_single_classes_are_reworded_too() -> None:
    clip = apd.load_clip("glyphs")
    names = ["zero", "one", "two"]
    spec = apd.PromptSpec(text_tokens=2, visual_tokens=0, class_specific=True)
    prompts = Prompts.initial(spec, clip, "a photo of the digit", 0, 3)
    classifier = apd.PromptedCLIP(clip, prompts, names, ["a photo of the digit {}."])
    data = apd.load_data("digits")
    for kind in ("typos", "edits"):
        (variant,) = Sources(n=1, candidates=2).variants(kind, classifier)
        assert variant.of(classifier).class_features().shape == (3, clip.info.embed_dim)
    with pytest.raises(InputError, match="classes"):
        evaluate_wording(classifier, data, quiet=True)


def test_words_that_yaml_takes_for_values_stay_words(tmp_path: Path) -> None:
    """A list of names with ``yes`` and ``010`` was measured as ``True`` and ``8``."""
    (tmp_path / "names.yaml").write_text("on: [yes, 010, 1_0, ~]\n7: [null, 2020-01-01]\n")
    found = read_synonyms(tmp_path / "names.yaml")
    assert found == {"on": ("yes", "010", "1_0", "~"), "7": ("null", "2020-01-01")}


@pytest.mark.parametrize("attack", ["universal", "targeted:a", "transfer:zero-shot"])
def test_attacks_that_need_more_than_an_image_are_refused(
    attack: str, toy: apd.PromptedCLIP, data: apd.Dataset
) -> None:
    with pytest.raises(InputError, match=f"{attack} needs other images"):
        evaluate_wording(toy, data, **{**OPTIONS, "attack": attack})


@pytest.mark.parametrize(
    ("text", "named"),
    [("[a]", "map"), ("a: b", "list"), ("d: [x]", "'d'"), ("a: [b]", "'b'"), ("a: []", "synonyms")],
)
def test_synonyms_that_do_not_fit_are_refused(
    toy: apd.PromptedCLIP, data: apd.Dataset, tmp_path: Path, text: str, named: str
) -> None:
    file = tmp_path / "other.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=named):
        evaluate_wording(toy, data, synonyms=file, changes="synonyms", **OPTIONS)
    with pytest.raises(InputError, match="--synonyms"):
        evaluate_wording(toy, data, changes="synonyms", **OPTIONS)


def test_synonyms_may_be_numbers(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("one: [1, I]\n")
    assert read_synonyms(tmp_path / "s.yaml") == {"one": ("1", "I")}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"changes": "typoss"}, "typos"), ({"distance": 0}, "distance"), ({"attack": "pgdd"}, "pgdd"), ({"eps": "x"}, "eps"),
     ({"attack": "cw", "norm": "linf"}, "cw"), ({"templates": "no such file"}, "no such file"), ({"epss": 1}, "epss")],
)  # fmt: skip
def test_wrong_settings_are_refused(
    toy: apd.PromptedCLIP, data: apd.Dataset, wrong: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        evaluate_wording(toy, data, **{**OPTIONS, **wrong})


def test_edits_are_drawn_from_the_seed_alone() -> None:
    editor = Editor(["kitchen sink"])
    assert editor.draw("kitchen sink", "kitchen sink", Random("x")) == editor.draw(
        "kitchen sink", "kitchen sink", Random("x")
    )


def test_command_prints_a_table_and_json(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "templates.txt").write_text("the digit {}.\n")
    common = [
        "wording",
        "--model",
        "glyphs",
        "--data",
        "digits",
        "--change",
        "templates",
        "--limit",
        8,
        "--attack",
        "clean",
    ]
    answer = cli(*common, "--templates", tmp_path / "templates.txt", "--json")
    found = json.loads(answer.out)
    assert answer.code == 0
    assert [one["templates"] for one in found["changes"]["templates"]["variants"]] == [["the digit {}."]]
    assert found["changes"]["templates"]["joint"] is None and found["attacked"] is None
    assert "templates" in cli(*common).out
    assert cli("wording", "--data", "digits").code == 2
    assert cli(*common, "--change", "x").code == 2
    assert cli("wording", tmp_path).code == 2
