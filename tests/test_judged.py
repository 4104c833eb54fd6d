"""What commands that judge a run, or zero-shot CLIP, say of the images they took."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import apd
from apd.data.settings import Which
from apd.errors import InputError
from apd.runs.folder import Run

from .command_line import Cli
from .refusals import refused
from .toys import pictures

pytestmark = pytest.mark.usefixtures("short_checks")

CERTIFY: dict[str, Any] = {"sigma": 0.2, "n0": 4, "n": 28, "limit": 2, "control": False, "quiet": True}
WORDING: dict[str, Any] = {
    "changes": "typos",
    "variants": 1,
    "attack": "clean",
    "limit": 2,
    "control": False,
    "quiet": True,
}
BOTH = pytest.mark.parametrize(
    ("judge", "options"), [(apd.certify_run, CERTIFY), (apd.evaluate_run_wording, WORDING)], ids=["certify", "wording"]
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that knows the first five digits."""
    data = apd.load_data("digits", shots=1, classes="base")
    folder = tmp_path_factory.mktemp("base") / "run"
    return apd.train("glyphs", data, method="coop", epochs=1, output=folder, quiet=True)


@BOTH
def test_other_data_are_judged_with_all_classes_and_said_to_be(base: Run, judge: Any, options: dict[str, Any]) -> None:
    names = ["cat", "dog", "cow", "bird"]
    pair = pictures(12, 4, seed=1)
    assert judge(base.path, data=apd.Dataset.from_tensors("pictures", names, pair, pair), **options).classes == "all"
    assert judge(base.path, **options).classes == "base"
    new = judge(base.path, classes="new", **options)
    assert (new.classes, new.n_available) == ("new", len(apd.load_data("digits").classes("new").test))


def test_a_data_set_with_the_run_s_classes_alone_is_judged_on_all_it_has(base: Run) -> None:
    data = apd.load_data("digits", shots=1, classes="base")
    assert apd.evaluate_run(base.path, data=data, attacks="clean", limit=2, quiet=True).n_classes == 5
    assert apd.certify_run(base.path, data=data, **CERTIFY).n_classes == 5
    whole = apd.load_data("digits", shots=1)
    assert apd.evaluate_run(base.path, data=whole, attacks="clean", limit=2, quiet=True).classes == "base"


@pytest.mark.parametrize("part", ["base", "new"])
def test_a_data_set_that_was_cut_to_some_classes_is_recorded_as_that_and_verified(
    base: Run, tmp_path: Path, part: Which
) -> None:
    run, data = shutil.copytree(base.path, tmp_path / "run"), apd.load_data("digits", shots=1).classes(part)
    shutil.rmtree(run / "results", ignore_errors=True)
    result = apd.evaluate_run(run, data=data, attacks="pgd-1", limit=8, control=False, quiet=True)
    assert (result.classes, result.n_available) == (part, len(data.test))
    found = apd.verify_run(run, samples=4, seed=0, device="cpu", quiet=True)
    assert found.verified, found.failed


@BOTH
def test_the_other_classes_than_those_that_were_kept_are_refused(
    base: Run, judge: Any, options: dict[str, Any]
) -> None:
    data = apd.load_data("digits", shots=1).classes("new")
    assert judge(base.path, data=data, **options).classes == "new"
    assert judge(base.path, data=data, **{**options, "classes": "new"}).classes == "new", "not a half of them"
    with refused("digits", "classes=base"):
        judge(base.path, data=data, **{**options, "classes": "base"})


@pytest.mark.parametrize(
    "command",
    [("certify", "--sigma", 0.2, "--n0", 4, "--n", 28), ("wording", "--change", "templates", "--attack", "clean")],
    ids=["certify", "wording"],
)
def test_zero_shot_on_some_classes_is_said_to_be(cli: Cli, command: tuple[object, ...]) -> None:
    answer = cli(*command, "--model", "glyphs", "--data", "digits", "--classes", "new", "--limit", 2, "--json")
    found = json.loads(answer.out)
    assert (found["classes"], found["n_available"]) == ("new", len(apd.load_data("digits").classes("new").test))


def test_a_run_has_its_own_templates(cli: Cli, base: Run) -> None:
    answer = cli("certify", base.path, "--template", "a drawing of {}.")
    assert answer.code == 2 and "--template has no meaning with a run folder" in answer.err


def test_other_templates_of_a_run_are_changes_of_wording(cli: Cli, base: Run, tmp_path: Path) -> None:
    (tmp_path / "templates.txt").write_text("the digit {}.\n")
    options = ("--change", "templates", "--attack", "clean", "--limit", 2, "--no-control", "--json")
    found = json.loads(cli("wording", base.path, "--templates", tmp_path / "templates.txt", *options).out)
    assert [one["templates"] for one in found["changes"]["templates"]["variants"]] == [["the digit {}."]]


def test_classes_without_a_text_context_of_their_own_are_told(cli: Cli, base: Run, tmp_path: Path) -> None:
    data = apd.load_data("digits", shots=1, classes="base")
    method = {"name": "coop", "prompts": {"class_specific": True}}
    run = apd.train("glyphs", data, method=method, epochs=1, output=tmp_path / "run", quiet=True)
    command = ("--classes", "new", "--attack", "clean", "--limit", 2)
    answer = cli("evaluate", run.path, *command)
    assert answer.code == 0 and "get the mean of its text contexts" in answer.err
    assert "get the mean" not in cli("evaluate", base.path, *command).err, "one context serves them all"


@BOTH
def test_unreadable_images_of_a_run_that_skips_them_can_be_refused(
    shallow_folder: Path, colours: Path, tmp_path: Path, judge: Any, options: dict[str, Any]
) -> None:
    data = shutil.copytree(colours, tmp_path / "colours")
    for file in apd.load_data(data, shots=2).test.sources[:3]:
        Path(str(file)).write_bytes(b"no image")
    run = apd.train(
        str(shallow_folder),
        apd.load_data(data, shots=2),
        method="coop",
        epochs=1,
        output=tmp_path / "run",
        skip_bad_images=True,
        quiet=True,
    )
    everything = {**options, "limit": "all"}
    assert judge(run.path, **everything).n_available > 3
    with pytest.raises(InputError):
        judge(run.path, skip_bad_images=False, **everything)


def test_wordings_from_other_sources_are_kept_beside_each_other(base: Run, tmp_path: Path) -> None:
    (tmp_path / "templates.txt").write_text("a picture of {}.\n")
    names = set[str]()
    for more in ({}, {"distance": 2}, {"templates": tmp_path / "templates.txt"}, {"distance": 2}):
        apd.evaluate_run_wording(base.path, **{**WORDING, "seed": 5, **more})
        names = {file.name for file in base.results.glob("wording-*seed5*.json")}
    assert len(names) == 3


@pytest.mark.parametrize(("norm", "eps"), [("linf", "1.75/255"), ("l2", "20/255")])
def test_attacked_wording_is_kept_under_its_budget_in_255ths(base: Run, norm: str, eps: str) -> None:
    attacked = {**WORDING, "attack": "pgd-1", "norm": norm, "eps": eps}
    apd.evaluate_run_wording(base.path, **attacked)
    names = [file.name for file in base.results.glob("wording-*.json")]
    assert sum(f"-pgd-1-{norm}-{eps.replace('/', '_')}-" in name for name in names) == 1, names
