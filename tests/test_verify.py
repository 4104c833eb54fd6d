"""`apd verify`: a run of a stranger is verified as it is, and each kind of tampering is noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import apd
from apd.attacks import Found, Transfer
from apd.evaluation.stored import load_stored
from apd.report.facts import choose_headline
from apd.runs.folder import Run
from benchmarks.forgeries import (
    FORGERIES,
    card_edited,
    change,
    encoder_swapped,
    outcomes_flipped_everywhere,
    rename_attack,
)
from benchmarks.forging import the_summary

from .command_line import Cli
from .refusals import check_error, meant, refused

# A verification repeats the health checks as they were; how long they search is the same to it.
pytestmark = pytest.mark.usefixtures("short_checks")

SAMPLES, SEED = 8, 5
UNRELIABLE = (
    "attacked within a quarter of the stated eps",
    "failed check called a warning",
    "failed health checks removed",
    "reasons of an unreliable result emptied",
)
"""Forgeries that need a result that is not reliable, or images that fall."""


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one evaluation, which some images withstand and some do not."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("stranger") / "run")
    apd.evaluate_run(run, attacks="pgd-2", limit="all", eps="1/255", device="cpu", save_images=True, quiet=True)
    return run


@pytest.fixture
def stranger(evaluated: Path, tmp_path: Path) -> Path:
    """A copy, to be tampered with; under the same name, as a download has it."""
    return shutil.copytree(evaluated, tmp_path / "run")


def test_an_honest_run_is_verified(cli: Cli, stranger: Path) -> None:
    before = {file: file.read_bytes() for file in stranger.rglob("*") if file.is_file()}
    answer = cli("verify", stranger, "--samples", SAMPLES, "--seed", SEED, "--json")
    found = json.loads(answer.out)
    assert answer.code == 0 and found["verified"], [row for row in found["findings"] if not row["ok"]]
    about = {row["about"] for row in found["findings"]}
    assert about >= {
        "prompts",
        "config",
        "card",
        "results",
        "records",
        "checks",
        "encoder",
        "classifier",
        "images",
        "again",
        "kept images",
    }
    assert (found["samples"], found["seed"]) == (SAMPLES, SEED)
    assert {file: file.read_bytes() for file in stranger.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("kind", [kind for kind in FORGERIES if kind not in UNRELIABLE])
def test_tampering_is_noticed(kind: str, stranger: Path) -> None:
    tamper, about = FORGERIES[kind]
    tamper(stranger)
    drawn = SAMPLES if about in ("again", "images") else 1  # the files alone tell of the others
    found = apd.verify_run(stranger, samples=drawn, seed=SEED, device="cpu", quiet=True)
    assert not found.verified and about in {finding.about for finding in found.failed}, found.failed


def test_an_exchanged_image_is_noticed_in_a_later_batch(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apd.evaluation.verify_images.BATCH", 1)
    (index,) = stranger.glob("images/*/index.json")
    first, *_, last = json.loads(index.read_text())["images"]
    shutil.copyfile(index.parent / first["file"], index.parent / last["file"])
    found = apd.verify_run(stranger, samples=1, seed=SEED, device="cpu", quiet=True)
    assert {finding.about for finding in found.failed} == {"kept images"}


def test_verifying_without_attacking_again_is_refused(stranger: Path) -> None:
    with refused("samples", "1 or more", "0"):
        apd.verify_run(stranger, samples=0, device="cpu", quiet=True)


def test_images_of_a_smaller_and_a_larger_evaluation_are_kept_together(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    for limit in (3, 6):
        how: dict[str, Any] = {"limit": limit, "eps": "1/255", "batch_size": 3}
        apd.evaluate_run(run, attacks="pgd-2", device="cpu", save_images=True, quiet=True, **how)
    found = apd.verify_run(run, samples=2, seed=SEED, device="cpu", quiet=True)
    assert found.verified and "kept images" in {finding.about for finding in found.findings}, found.failed


def test_a_kept_image_refutes_what_is_said_of_it(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    apd.evaluate_run(
        run, attacks="pgd-5", eps="64/255", limit=6, device="cpu", save_images=True, quiet=True, checks=False
    )
    summary = the_summary(run)

    def withstood(outcomes: dict[str, Any]) -> None:
        assert outcomes["predictions"]["pgd-5"] != outcomes["predictions"]["clean"], (
            "else there is nothing to be refuted"
        )
        outcomes["predictions"]["pgd-5"] = outcomes["predictions"]["clean"]

    change(summary.with_name(summary.name.replace("summary-", "outcomes-")), withstood)
    found = apd.verify_run(run, samples=1, seed=SEED, device="cpu", quiet=True)
    (finding,) = (finding for finding in found.findings if finding.about == "kept images")
    assert not finding.ok and "misclassified" in finding.message


@pytest.mark.parametrize(("norm", "eps"), [("l1", "12"), ("l2", "1.5")])
def test_kept_images_of_a_budget_above_1_are_what_the_index_says(
    trained: Path, tmp_path: Path, norm: str, eps: str
) -> None:
    """Only for Linf is such a budget a mistake."""
    run = shutil.copytree(trained, tmp_path / "run")
    how: dict[str, Any] = {"limit": 4, "eps": eps, "norm": norm, "checks": True}
    apd.evaluate_run(run, attacks="pgd-2", device="cpu", save_images=True, quiet=True, **how)
    found = apd.verify_run(run, samples=2, seed=SEED, device="cpu", quiet=True)
    assert [finding.ok for finding in found.findings if finding.about == "kept images"] == [True], found.failed


def test_images_made_on_zero_shot_clip_are_made_on_it_again(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made on the run itself they would be a white-box attack, which an honest run does not withstand as well."""
    run = shutil.copytree(trained, tmp_path / "run")
    made_on: list[str] = []
    climb = Transfer.__call__

    def look(self: Transfer, *arguments: Any) -> Found:
        assert self.made_on is not None
        made_on.append(self.made_on.fingerprint)
        return climb(self, *arguments)

    monkeypatch.setattr(Transfer, "__call__", look)
    apd.evaluate_run(run, attacks="transfer:zero-shot", limit=4, device="cpu", quiet=True)
    expected = set(made_on)
    apd.verify_run(run, samples=2, seed=SEED, device="cpu", quiet=True)
    assert set(made_on) == expected and len(made_on) > 2 and len(expected) == 1


def _without_images(run: Path) -> None:
    file = the_summary(run)

    def empty(outcomes: dict[str, Any]) -> None:
        for each in [*map(outcomes.get, ("ids", "pixels", "labels")), *outcomes["predictions"].values()]:
            each.clear()
        outcomes["undefended"] = None

    change(file.with_name(file.name.replace("summary-", "outcomes-")), empty)
    change(file, lambda record: record.update(n=0, undefended=None))


@pytest.mark.parametrize(
    ("damage", "about", "says"),
    [
        (lambda run: (run / "results" / "checks-0.json").write_text('{"a": 1}'), None, None),
        (lambda run: change(the_summary(run), lambda record: record.update(clean=10**400)), "results", "clean"),
        (lambda run: change(the_summary(run), lambda record: record.update(eps=10**400)), "results", "eps"),
        (_without_images, "results", "no image"),
        (lambda run: rename_attack(run, "pgd-1000000000"), "again", "more steps"),
        (lambda run: rename_attack(run, "foolbox:LinfPGD(steps= 1_000_000)"), "again", "more steps"),
        (lambda run: rename_attack(run, "Momentum(steps=5)"), "again", "cannot be repeated: Unknown attack"),
        (lambda run: rename_attack(run, "foolbox:LinfPGD(steps=+99999999)"), "again", "more steps"),
        (lambda run: rename_attack(run, "foolbox:LinfPGD(steps=0xfffffff)"), "again", "more steps"),
    ],
)
def test_damaged_files_are_findings_and_not_exceptions(
    damage: Callable[[Path], object], about: str | None, says: str | None, stranger: Path
) -> None:
    damage(stranger)
    found = apd.verify_run(stranger, samples=1, seed=SEED, device="cpu", quiet=True)
    told = [finding.message for finding in found.failed if finding.about == about]
    assert found.verified if about is None else any(str(says) in message for message in told), found.failed


def test_other_data_with_its_classes_in_another_order_are_verified(
    trained: Path, colours: Path, tmp_path: Path
) -> None:
    """They were evaluated as they should be, and the classifier was said to be another one."""
    run = shutil.copytree(trained, tmp_path / "run")
    images = shutil.copytree(colours, tmp_path / "turned")
    names = sorted({file.parent.name for file in images.rglob("*.png")}, reverse=True)
    files = sorted(file.relative_to(images) for file in images.rglob("*.png"))
    rows = [[str(file), names.index(file.parent.name), file.parent.name] for file in files]
    split = images / "split_turned.json"
    parts = {"train": rows[::3], "val": rows[1::3], "test": rows[2::3]}
    split.write_text(json.dumps(parts))
    result = apd.evaluate_run(run, data=str(split), attacks="pgd-2", limit=6, eps="1/255", device="cpu", quiet=True)
    assert tuple(result.class_names) != apd.load_run(run).class_names
    found = apd.verify_run(run, data=[str(split)], samples=2, seed=SEED, device="cpu", quiet=True)
    assert found.verified, found.failed


def test_other_data_of_the_run_s_own_name_are_told_apart(trained: Path, colours: Path, tmp_path: Path) -> None:
    """The run's own images are found where the run says, the others where they are given."""
    run = shutil.copytree(trained, tmp_path / "run")
    how: dict[str, Any] = {"attacks": "pgd-2", "eps": "1/255", "device": "cpu", "quiet": True}
    others = shutil.copytree(colours, tmp_path / "others" / "colours")
    for file in [*others.rglob("*.png")]:
        file.rename(file.with_stem(f"other {file.stem}"))
    moved = shutil.copytree(colours, tmp_path / "moved" / "colours")
    own = [apd.evaluate_run(run, data=data, limit=limit, **how) for data, limit in ((None, 4), (str(moved), 5))]
    other = apd.evaluate_run(run, data=str(others), limit=6, **how)
    assert [each.own_data for each in (*own, other)] == [True, True, False]
    assert {each.data for each in (*own, other)} == {"colours"}
    folder = Run.open(run)
    assert choose_headline(folder, load_stored(folder)).summary["n"] == 5
    found = apd.verify_run(run, data=[str(others)], samples=2, seed=SEED, device="cpu", quiet=True)
    assert found.verified, found.failed
    found = apd.verify_run(run, data=[str(moved), str(others)], samples=2, seed=SEED, device="cpu", quiet=True)
    assert found.verified, found.failed
    assert not apd.verify_run(run, samples=2, seed=SEED, device="cpu", quiet=True).verified


@pytest.fixture(scope="module")
def unreliable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose evaluation is not reliable: its attack was too weak, and images that stand fall within more."""
    place = tmp_path_factory.mktemp("unreliable")
    data = apd.load_data("digits", shots=1, classes="base")
    run = apd.train("glyphs", data, method="coop", epochs=1, output=place / "run", quiet=True).path
    result = apd.evaluate_run(run, attacks="pgd-1", limit=16, eps="14/255", control=False, device="cpu", quiet=True)
    assert result.reliable is False
    return run


@pytest.mark.parametrize("kind", [None, *UNRELIABLE])
def test_an_unreliable_result_is_verified_and_cannot_be_called_reliable(
    kind: str | None, unreliable: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(unreliable, tmp_path / "run")
    tamper, about = FORGERIES[kind] if kind else (None, None)
    if tamper is not None:
        tamper(run)
    drawn = 16 if about in (None, "again") else 1  # the files alone tell of the others
    found = apd.verify_run(run, samples=drawn, seed=SEED, device="cpu", quiet=True)
    noticed = {finding.about for finding in found.failed}
    assert about in noticed if kind else not noticed, found.failed


def test_a_forger_who_computes_everything_anew_is_noticed_by_the_attack_alone(stranger: Path) -> None:
    outcomes_flipped_everywhere(stranger)
    shutil.rmtree(stranger / "images")  # which tell it, too
    found = apd.verify_run(stranger, samples=30, seed=SEED, device="cpu", quiet=True)
    assert {finding.about for finding in found.failed} <= {"again", "checks again", "results"}
    assert "again" in {finding.about for finding in found.failed}


def test_the_command_has_a_line_per_finding_and_exit_code_1(cli: Cli, stranger: Path) -> None:
    card_edited(stranger)
    encoder_swapped(stranger)
    answer = cli("verify", stranger, "--samples", 2)
    assert answer.code == 1
    lines = answer.out.splitlines()
    assert (
        sum(line.startswith("FAIL card") for line in lines)
        == sum(line.startswith("FAIL encoder") for line in lines)
        == 1
    )
    assert any(line.startswith("ok   prompts") for line in lines)


@pytest.mark.parametrize("place", ["data", "method", "model", "attack", "source of an attack"])
def test_code_that_a_stranger_names_is_not_imported(
    place: str, cli: Cli, stranger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"evil_{place.replace(' ', '_')}:thing"
    Path(f"{name.partition(':')[0]}.py").write_text(
        "from pathlib import Path\nPath('executed').touch()\nthing = print\n"
    )
    record = yaml.safe_load((stranger / "config.yaml").read_text())
    if place == "model":
        change(stranger / "run.json", lambda manifest: manifest["model"].update(source=name))
    elif place in record:
        record[place].update({"data": {"source": name}, "method": {"name": name}}[place])
    else:
        rename_attack(stranger, f"transfer:{name}" if place.startswith("source") else name)
    (stranger / "config.yaml").write_text(yaml.safe_dump(record, sort_keys=False))
    assert cli("verify", stranger, "--samples", 2).code == 1
    assert not Path("executed").exists()


def test_what_is_not_a_run_is_refused(cli: Cli, tmp_path: Path) -> None:
    check_error(cli("verify", tmp_path), [str(tmp_path)])


def test_an_honest_curve_is_verified(cli: Cli, run: Path) -> None:
    answer = cli("evaluate", run, "--curve", "1/255,4/255", "--attack", "pgd-1", "--limit", 4)
    assert answer.code == 0, answer.err
    answer = cli("verify", run, "--samples", 2)
    assert answer.code == 0, answer.out
    # The largest budget is the one that has health checks.
    for file in (run / "results").glob("summary-*.json"):
        if json.loads(file.read_text())["checks"]:
            change(file, lambda record: record.update(checks=[], reliable=None, unreliable_because=[]))
    found = apd.verify_run(run, samples=2, device="cpu", quiet=True)
    assert "checks" in {finding.about for finding in found.failed}, found.failed


def test_a_typo_of_whoever_verifies_is_not_a_finding(cli: Cli, stranger: Path) -> None:
    check_error(cli("verify", stranger, "--model", "glyhps"), ["'glyhps'", meant("glyphs")])
    check_error(cli("verify", stranger, "--data", "digts"), ["'digts'", meant("digits")])
    check_error(cli("verify", stranger, "--data", "digits", "--samples", 2), ["--data", "digits", "'colours'"])


def test_a_run_without_evaluations_has_nothing_to_verify(cli: Cli, run: Path) -> None:
    shutil.rmtree(run / "results", ignore_errors=True)
    assert cli("verify", run).code == 1
