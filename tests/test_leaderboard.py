"""`apd leaderboard`: only comparable figures stand together; differences are paired; names of strangers do no harm."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import apd
from apd.evaluation import evaluate_tensors
from apd.evaluation.settings import EvaluationSettings
from apd.evaluation.stored import write_result

from .command_line import Cli
from .refusals import check_error, meant, refused
from .toys import decoded, trained

NASTY = "a|b<script>x</script>\x1b[31m`*"


def put(place: Path, kind: str = "conv", *, seed: int = 0, eps: str = "4/255", name: str = "toy", **more: Any) -> Path:
    """Evaluate a toy and keep the result in a folder."""
    settings = EvaluationSettings(attacks=more.pop("attacks", ("pgd-2",)), eps=eps, checks=False, quiet=True)
    images = decoded(24, 3, seed=seed)
    control = trained(3) if more.pop("control", False) else None
    result = evaluate_tensors(trained(3, kind), images, list("abc"), settings, undefended=control, name=name)
    return write_result(place / "results", result.model_copy(update=more))


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_only_comparable_figures_stand_together(tmp_path: Path) -> None:
    put(tmp_path / "runs" / "a")
    put(tmp_path / "runs" / "deep" / "b", "linear")
    put(tmp_path / "runs" / "other-images", seed=1)
    put(tmp_path / "runs" / "other-eps", eps="8/255")
    put(tmp_path / "runs" / "other-attack", attacks=("pgd-3",))
    put(tmp_path / "runs" / "other-data", name="toy2")
    (alone,) = apd.leaderboard([tmp_path / "runs" / "a" / "results"]).groups
    assert [entry.name for entry in alone.entries] == ["a"]
    board = apd.leaderboard([tmp_path / "runs"])
    together = [{entry.name for entry in group.entries} for group in board.groups]
    assert sorted(map(len, together)) == [1, 1, 1, 1, 2]
    assert {"runs/a", "runs/deep/b"} in together
    (pair,) = [group for group in board.groups if len(group.entries) == 2]
    assert set(pair.absent) == {"runs/other-images", "runs/other-eps", "runs/other-attack"}
    assert (pair.n, pair.attack, pair.norm, pair.eps) == (24, "pgd-2", "linf", "4/255")


def test_a_result_of_before_that_names_no_number_of_classes_is_ranked(tmp_path: Path) -> None:
    file = put(tmp_path / "runs" / "a")
    file.write_text(
        json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "n_classes"})
    )
    (group,) = apd.leaderboard([tmp_path / "runs"]).groups
    assert len(group.entries) == 1


def test_two_numbers_of_classes_are_two_tasks(tmp_path: Path) -> None:
    change(put(tmp_path / "runs" / "a"), n_classes=100)
    put(tmp_path / "runs" / "b", "linear")
    assert [len(group.entries) for group in apd.leaderboard([tmp_path / "runs"]).groups] == [1, 1]


@pytest.mark.parametrize("below", ["", "run", "run/results"])
def test_folders_of_one_name_do_not_hide_each_other(tmp_path: Path, below: str) -> None:
    for one in "ab":
        put(tmp_path / one / "runs" / "run")
    put(tmp_path / "a" / "runs" / "run", attacks=("pgd-2", "pgd-3"))
    group = apd.leaderboard([tmp_path / one / "runs" / below for one in "ab"]).groups[0]
    assert {entry.name for entry in group.entries} == {"a/runs/run", "b/runs/run"} and not group.absent


def test_of_one_attack_with_two_outcomes_the_worst_counts(tmp_path: Path) -> None:
    for index, accuracy in enumerate((70.0, 50.0, 60.0)):
        file = put(tmp_path / "run")
        score = {"accuracy": accuracy, "interval": [0.0, 100.0]}
        change(file, attacks={"pgd-2": {**json.loads(file.read_text())["attacks"]["pgd-2"], **score}})
        file.rename(file.with_name(f"summary-{index}.json"))
        file.with_name(file.name.replace("summary", "outcomes")).unlink()
    (group,) = apd.leaderboard(tmp_path).groups
    assert [entry.accuracy for entry in group.entries] == [50.0]


def test_results_on_other_images_of_one_name_are_both_kept(tmp_path: Path) -> None:
    first = put(tmp_path / "run")
    kept = first.read_text()
    second = put(tmp_path / "run", seed=1)
    assert second != first and first.read_text() == kept
    assert [put(tmp_path / "run", seed=seed) for seed in (0, 1)] == [first, second], "each replaces its own"
    assert len(apd.leaderboard(tmp_path).groups) == 2
    pixels = json.loads(first.with_name(first.name.replace("summary", "outcomes")).read_text())["pixels"]
    changed = put(tmp_path / "run", pixels=("changed", *pixels[1:]))
    assert changed == first, "a data set of which an image has changed is the same"


def test_entries_are_sorted_and_compared_with_the_best_image_by_image(tmp_path: Path) -> None:
    files = [put(tmp_path / "a", "linear", eps="16/255"), put(tmp_path / "b", "conv", eps="16/255")]
    (group,) = apd.leaderboard([tmp_path]).groups
    first, second = group.entries
    assert first.accuracy >= second.accuracy and first.paired is None and second.paired is not None
    assert second.paired.difference == pytest.approx(second.accuracy - first.accuracy, abs=0.02)
    assert second.paired.interval[0] <= second.paired.difference <= second.paired.interval[1]
    stated = {json.loads(file.read_text())["attacks"]["pgd-2"]["accuracy"] for file in files}
    assert {first.accuracy, second.accuracy} == stated


def test_several_attacks_have_a_group_each_and_one_for_the_worst(tmp_path: Path) -> None:
    put(tmp_path / "a", attacks=("pgd-2", "pgd-1"))
    put(tmp_path / "b", "linear", attacks=("pgd-1", "pgd-2"), control=True)
    put(tmp_path / "c", "linear")
    groups = {group.attack: [entry.name for entry in group.entries] for group in apd.leaderboard([tmp_path]).groups}
    folder = tmp_path.name
    assert {name: set(names) for name, names in groups.items()} == {
        "pgd-1": {f"{folder}/a", f"{folder}/b"},
        "pgd-2": {f"{folder}/a", f"{folder}/b", f"{folder}/c"},
        "worst of pgd-1, pgd-2": {f"{folder}/a", f"{folder}/b"},
    }
    only = apd.leaderboard([tmp_path], attack="pgd-1").groups
    assert [group.attack for group in only] == ["pgd-1"]


def test_what_is_missing_or_not_reliable_is_said(tmp_path: Path) -> None:
    bad = {"name": "random noise", "passed": False, "value": 1.0, "message": "noise"}
    change(put(tmp_path / "bad"), checks=[bad])
    change(put(tmp_path / "good", control=True), checks=[{**bad, "passed": True}])
    lost = put(tmp_path / "lost")
    lost.with_name(lost.name.replace("summary", "outcomes")).unlink()
    entries = {
        entry.name.rpartition("/")[2]: entry for group in apd.leaderboard([tmp_path]).groups for entry in group.entries
    }
    assert (entries["bad"].reliable, entries["good"].reliable, entries["lost"].reliable) == (False, True, None)
    assert entries["bad"].because and not entries["good"].missing
    assert set(entries["lost"].missing) == {"outcomes per image", "health checks", "zero-shot control"}
    assert len(apd.leaderboard([tmp_path]).groups) == 2, "without outcomes nothing says that the images are the same"


def test_damaged_results_are_left_out_and_named(tmp_path: Path) -> None:
    put(tmp_path / "a")
    for name, content in {
        "cut": "{",
        "list": "[]",
        "empty": "{}",
        "deep": "[" * 100_000,
        "number": json.dumps({"n": 1, "data": 3}),
    }.items():
        file = tmp_path / name / "results" / "summary-x.json"
        file.parent.mkdir(parents=True)
        file.write_text(content)
    change(put(tmp_path / "high"), attacks={"pgd-2": {"accuracy": 1e9, "interval": [0, 1]}})
    (tmp_path / "link" / "results").mkdir(parents=True)
    os.symlink("/dev/zero", tmp_path / "link" / "results" / "summary-y.json")
    os.symlink(tmp_path, tmp_path / "loop")
    board = apd.leaderboard([tmp_path])
    assert len(board.groups) == 1 and len(board.left_out) == 7
    with refused("nowhere"):
        apd.leaderboard([tmp_path / "nowhere"])


def test_a_board_without_entries_is_refused_with_the_way_out(cli: Cli, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    check_error(cli("leaderboard", empty), [str(empty), "apd evaluate RUN"])
    put(tmp_path / "runs" / "a")
    put(tmp_path / "runs" / "b", name="toy2", attacks=("pgd-3",))
    check_error(cli("leaderboard", tmp_path / "runs", "--attack", "pgd-22"), ["'pgd-22'", meant("pgd-2")])
    check_error(cli("leaderboard", tmp_path / "runs", "--data", "tpy"), ["'tpy'", meant("toy")])
    check_error(cli("leaderboard", tmp_path / "runs", "--data", "toy", "--attack", "pgd-3"), ["'toy'", "'pgd-3'"])
    broken = tmp_path / "broken" / "results" / "summary-x.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    check_error(cli("leaderboard", tmp_path / "broken"), ["summary-x.json"])


def test_names_are_whole_in_a_narrow_terminal(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("my-models-robust-935ff2cb52fd", "a-much-longer-name-of-a-folder-of-results"):
        put(tmp_path / name, "linear" if name[0] == "a" else "conv")
    shown = cli("leaderboard", tmp_path).out
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 80
    table, _, notes = shown.partition("lacks: ")
    first = "".join(line[:22].strip() for line in table.splitlines())
    for name in ("my-models-robust-935ff2cb52fd", "a-much-longer-name-of-a-folder-of-results"):
        assert name in first
    assert notes.split()[:2] == ["health", "checks,"]


def test_the_command_writes_every_form_and_escapes_names(cli: Cli, tmp_path: Path) -> None:
    place = tmp_path / "runs" / "x"
    put(place, name=NASTY)
    put(tmp_path / "runs" / "y", "linear", name=NASTY)
    (place / "classifier.json").write_text(json.dumps({"classifier": NASTY}))
    texts = {}
    for suffix in (".md", ".html", ".json"):
        answer = cli("leaderboard", tmp_path / "runs", "--output", tmp_path / f"board{suffix}")
        assert answer.code == 0, answer.err
        texts[suffix] = (tmp_path / f"board{suffix}").read_text()
        assert "\x1b[31m" not in answer.out
    for text in texts.values():
        assert "\x1b" not in text
    assert "<script>" not in texts[".md"] + texts[".html"]
    rows = [line for line in texts[".md"].splitlines() if line.startswith("|")]
    assert len(rows) == 4 and len({line.replace("\\|", "").count("|") for line in rows}) == 1
    said = json.loads(cli("leaderboard", tmp_path / "runs", "--json").out)
    assert said == json.loads(texts[".json"]) and len(said["groups"][0]["entries"]) == 2
    check_error(cli("leaderboard", tmp_path, "--output", tmp_path / "board.txt"), [".md", ".html"])
