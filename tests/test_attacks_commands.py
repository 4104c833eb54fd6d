"""Attacks by name on a run folder: what they need is found, outcomes are kept by it, and curves are printed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from apd import attacks
from apd.attacks.patch import Patch
from apd.attacks.targeted import Targeted
from apd.attacks.transfer import Transfer
from apd.attacks.universal import Universal

from .command_line import Cli

pytestmark = pytest.mark.usefixtures("short_checks")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these attacks are given is tested here, not how far they climb."""

    def shorten(kind: type) -> None:
        make = kind.__init__

        def made(self: object, *arguments: object, **options: object) -> None:
            make(self, *arguments, **options)
            object.__setattr__(self, "steps", 2)

        monkeypatch.setattr(kind, "__init__", made)

    for kind in (Transfer, Universal, Patch, Targeted):
        shorten(kind)
    monkeypatch.setitem(vars(attacks.find("fmn")), "steps", 2)


@pytest.mark.usefixtures("short")
def test_attacks_that_need_more_than_the_model(cli: Cli, run: Path) -> None:
    sibling = shutil.copytree(run, run.parent / "sibling")
    names = [
        "transfer:zero-shot",
        f"transfer:{sibling}",
        "universal",
        "patch-20",
        "targeted:green",
        "foolbox:LinfPGD(steps=2)",
    ]
    given = [part for name in names for part in ("--attack", name)]
    answer = cli("evaluate", run, *given, "--limit", 4, "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert list(told["attacks"]) == names and set(told["undefended"]["attacks"]) == set(names)
    about = [
        json.loads(file.read_text().splitlines()[0])["circumstances"] for file in (run / "results").glob("*.jsonl")
    ]
    learned = {row["attack"]: sorted({"source", "learned on", "foolbox"} & set(row)) for row in about}
    assert learned["transfer:zero-shot"] == ["source"] and learned["universal"] == ["learned on"]
    assert learned["foolbox:LinfPGD(steps=2)"] == ["foolbox"] and learned["patch-20"] == []


def test_the_teacher_of_a_run_is_the_clip_model_that_taught_it(cli: Cli, run: Path) -> None:
    answer = cli("evaluate", run, "--attack", "transfer:teacher", "--limit", 2, "--json")
    assert answer.code == 0, answer.err
    assert list(json.loads(answer.out)["attacks"]) == ["transfer:zero-shot"]
    stranger = cli("evaluate", "--model", "glyphs", "--data", "digits", "--attack", "transfer:teacher", "--limit", 2)
    assert stranger.code == 2 and "transfer:MODEL" in stranger.err


@pytest.mark.usefixtures("short")
def test_other_norms_and_their_attacks(cli: Cli, run: Path) -> None:
    answer = cli("evaluate", run, "--attack", "pgd-2,fmn", "--norm", "l1", "--eps", 3, "--limit", 2, "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["norm"] == "l1"
    refused = cli("evaluate", run, "--attack", "cw", "--limit", 2)
    assert refused.code == 2 and "l2" in refused.err
    unknown = cli("evaluate", run, "--attack", "targeted:violet", "--limit", 2)
    assert unknown.code == 2 and "violet" in unknown.err


def test_other_words_are_judged_in_the_run_s_own_norm(cli: Cli, run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["train"].update(norm="l1", eps="3")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    answer = cli("wording", run, "--eps", 6, "--attack", "fmn", "--change", "typos", "--limit", 2, "--json")
    assert answer.code == 0, answer.err
    assert (json.loads(answer.out)["norm"], json.loads(answer.out)["eps_text"]) == ("l1", "6")


def test_a_curve_of_a_run_keeps_its_evaluations(cli: Cli, run: Path) -> None:
    answer = cli("evaluate", run, "--curve", "1/255,8/255", "--attack", "pgd-2", "--limit", 4, "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    points = {point["eps"]: point["accuracy"] for point in told["points"]}
    assert {0, 1 / 255, 8 / 255} <= set(points) and sorted(points.values(), reverse=True) == list(points.values())
    kept = [json.loads(file.read_text())["eps"] for file in (run / "results").glob("summary-*.json")]
    assert {1 / 255, 8 / 255} <= set(kept)
    assert told["result"]["reliable"] is not None


def test_a_curve_is_of_the_run_s_own_norm(cli: Cli, run: Path) -> None:
    """In which a budget above 1 is no mistake."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["train"].update(norm="l2", eps="0.5")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    answer = cli("evaluate", run, "--curve", "0.5,1.5", "--attack", "pgd-1", "--limit", 2, "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert told["norm"] == "l2" and {0.5, 1.5} <= {point["eps"] for point in told["points"]}
    assert cli("evaluate", run, "--curve", "0.5,1.5", "--norm", "linf", "--limit", 2).code == 2
