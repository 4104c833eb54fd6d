"""`apd compare`: paired differences of what run folders keep, against scipy and counting by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import binomtest

import apd
from apd.evaluation.compare import Row, compare_runs
from apd.evaluation.statistics import mcnemar
from apd.evaluation.stored import load_stored
from apd.runs.folder import Run
from apd.runs.setting_differences import differences

from .command_line import Cli
from .models import save_colours
from .refusals import check_error, refused

QUICK: dict[str, Any] = {"attacks": "pgd-1", "checks": False, "quiet": True, "device": "cpu"}


def outcomes_file(run: Path) -> Path:
    (file,) = (run / "results").glob("outcomes-*.json")
    return file


@pytest.fixture
def pair(run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two evaluated runs; the second is right where the first is wrong for two images without an attack."""
    apd.evaluate_run(run, **QUICK)
    other = shutil.copytree(run, tmp_path / "other")
    record = json.loads(outcomes_file(other).read_text())
    wrong = [i for i, label in enumerate(record["labels"]) if record["predictions"]["clean"][i] != label][:2]
    for i in wrong:
        record["predictions"]["clean"][i] = record["labels"][i]
    outcomes_file(other).write_text(json.dumps(record))
    (summary,) = (other / "results").glob("summary-*.json")
    about = json.loads(summary.read_text())
    right = sum(a == b for a, b in zip(record["predictions"]["clean"], record["labels"], strict=True))
    about["clean"] = round(100 * right / len(record["labels"]), 2)
    summary.write_text(json.dumps(about))
    return run, other


def test_what_is_kept_is_the_result(run: Path) -> None:
    result = apd.evaluate_run(run, **QUICK)
    (kept,) = load_stored(Run.open(run))
    assert kept.summary == result.to_dict() and kept.outcomes is not None
    assert (kept.outcomes.ids, kept.outcomes.labels) == (result.ids, result.labels)
    assert kept.outcomes.class_names == ("blue", "green", "red")
    assert kept.outcomes.predictions == result.predictions
    assert result.undefended is not None
    assert sum(kept.outcomes.right("pgd-1", undefended=True)) * 100 / result.n == pytest.approx(
        result.undefended.attacks["pgd-1"].accuracy, abs=0.006
    )
    assert kept.outcomes.right("worst") == result.robust_mask().tolist()


def test_outcomes_that_are_not_the_summary_s_do_not_count(pair: tuple[Path, Path]) -> None:
    run, _ = pair
    (summary,) = (run / "results").glob("summary-*.json")
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "clean": 101.0}))
    assert load_stored(Run.open(run))[0].outcomes is None


def test_the_worst_case_is_that_of_all_attacks_of_its_table(run: Path, tmp_path: Path) -> None:
    def told() -> list[tuple[str, str]]:
        other = shutil.copytree(run, tmp_path / "other", dirs_exist_ok=True)
        return [(row.images.removeprefix(row.data), row.attack) for row in compare_runs([run, other])[0].rows]

    for attacks in (("pgd-1", "pgd-2"), ("pgd-3", "pgd-4")):
        apd.evaluate_run(run, **{**QUICK, "attacks": attacks, "limit": 6})
    each = [f"pgd-{steps}" for steps in (1, 2, 3, 4)]
    assert [attack for _, attack in told()] == ["clean", *each], "neither pair is the worst case"
    apd.evaluate_run(run, **{**QUICK, "attacks": tuple(each), "limit": 4})
    apd.evaluate_run(run, **{**QUICK, "attacks": ("pgd-1", "pgd-2"), "split": "val"})
    usual = [("", attack) for attack in ["clean", *each, "worst"]]
    assert told() == [*usual, *[(" (val split)", attack) for attack in ["clean", "pgd-1", "pgd-2", "worst"]]]


def test_differences_are_paired(pair: tuple[Path, Path], cli: Cli) -> None:
    (found,) = compare_runs(pair)
    clean, attacked = found.rows
    assert (clean.attack, clean.eps, attacked.attack, attacked.eps) == ("clean", None, "pgd-1", "1/255")
    n = clean.n
    assert (clean.only_a, clean.only_b, attacked.only_a, attacked.only_b) == (0, 2, 0, 0)
    assert clean.difference == round(200 / n, 2) and clean.interval[0] <= clean.difference <= clean.interval[1]
    assert (clean.p, attacked.p, attacked.difference) == (0.5, 1.0, 0.0)
    table = found._repr_html_()
    assert table.count("<tr>") == 3 and f"{clean.difference:+.1f} [" in table and "pgd-1 linf 1/255" in table
    printed = cli("compare", *pair, "--json")
    assert printed.code == 0, printed.err
    (record,) = json.loads(printed.out)["comparisons"]
    assert [Row(**{**row, "interval": tuple(row["interval"])}) for row in record["rows"]] == list(found.rows)


def test_the_table_fits_80_columns(pair: tuple[Path, Path], cli: Cli) -> None:
    answer = cli("compare", *pair)
    table = [line for line in answer.out.splitlines() if "│" in line or "┃" in line]
    assert table and max(map(len, table)) <= 80
    assert "pgd-1" in answer.out and "apd report" in answer.err


def test_only_images_in_common_count(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    apd.evaluate_run(run, limit=3, **QUICK)
    apd.evaluate_run(other, **QUICK)
    assert {row.n for row in compare_runs([run, other])[0].rows} == {3}


def test_another_eps_is_compared_without_an_attack_only(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    apd.evaluate_run(run, **QUICK)
    apd.evaluate_run(other, eps="3/255", **QUICK)
    assert [row.attack for row in compare_runs([run, other])[0].rows] == ["clean"]


def test_an_image_among_fewer_classes_is_another_question(run: Path, tmp_path: Path) -> None:
    """It is easier to get right, so that the run judged on fewer would look better."""
    other = shutil.copytree(run, tmp_path / "other")
    few = apd.evaluate_run(run, classes="base", **QUICK)
    whole = apd.evaluate_run(other, **QUICK)
    assert set(few.ids) < set(whole.ids)
    with refused("as many classes", "classes base", "classes all", "--classes"):
        compare_runs([run, other])
    apd.evaluate_run(other, classes="base", **QUICK)
    assert {(row.n, row.only_a, row.only_b) for row in compare_runs([run, other])[0].rows} == {(few.n, 0, 0)}


def test_the_worst_of_several_attacks_has_a_row(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    for each in (run, other):
        apd.evaluate_run(each, **{**QUICK, "attacks": ("pgd-1", "pgd-2")})
    assert [row.attack for row in compare_runs([run, other])[0].rows] == ["clean", "pgd-1", "pgd-2", "worst"]


def test_runs_without_images_in_common_are_refused(run: Path, tmp_path: Path, cli: Cli) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    apd.evaluate_run(run, **QUICK)
    apd.evaluate_run(
        other, data=str(save_colours(tmp_path / "elsewhere", per_class=4, classes=("dark", "bright"))), **QUICK
    )
    check_error(cli("compare", run, other, "--json"), [str(run), str(other), "elsewhere"])


def test_runs_that_cannot_be_compared_are_refused(run: Path, tmp_path: Path) -> None:
    with refused("two"):
        compare_runs([run])
    with refused(str(run), "twice"):
        compare_runs([run, run.parent / "." / run.name])
    with refused(str(run), "apd evaluate"):
        compare_runs([run, shutil.copytree(run, tmp_path / "other")])
    apd.evaluate_run(run, **QUICK)
    outcomes_file(run).write_text("{")
    with refused("outcomes-", "damaged"):
        load_stored(Run.open(run))


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_agrees_with_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random(80) < 0.7, rng.random(80) < 0.5
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    assert mcnemar(a, b) == pytest.approx(binomtest(only_a, only_a + only_b).pvalue, abs=1e-12)
    assert mcnemar(a, a) == 1.0
    with refused("shapes"):
        mcnemar(a, b[:3])


def retrained(run: Path, path: Path, **train: Any) -> Path:
    """A copy of a run that says it was trained with these settings, and for twice as many steps."""
    shutil.copytree(run, path)
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["train"] |= train
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    manifest = json.loads((path / "run.json").read_text())
    manifest["summary"]["steps"] *= 2
    (path / "run.json").write_text(json.dumps(manifest))
    return path


def test_what_the_trainings_differ_in_is_told(run: Path, tmp_path: Path, cli: Cli) -> None:
    apd.evaluate_run(run, **QUICK)
    steps = json.loads((run / "run.json").read_text())["summary"]["steps"]
    other = retrained(run, tmp_path / "other", eps="7/255", device="cuda:1")
    (found,) = compare_runs([run, other])
    eps = Run.open(run).config.train.eps
    assert found.settings == (("steps", str(steps), str(2 * steps)), ("train.eps", str(eps), "7/255"))
    answer = cli("compare", run, other)
    assert "7/255" in answer.out and str(2 * steps) in answer.out
    assert compare_runs([run, shutil.copytree(run, tmp_path / "same")])[0].settings == ()
    for n in (1, 2):  # as many steps, of which the warm-up takes another share
        fixed = shutil.copytree(run, tmp_path / f"fixed{n}")
        config = yaml.safe_load((fixed / "config.yaml").read_text())
        config["train"] |= {"steps": steps, "epochs": n}
        (fixed / "config.yaml").write_text(yaml.safe_dump(config))
    assert differences(tmp_path / "fixed1", tmp_path / "fixed2") == (("train.epochs", "1", "2"),)
    assert differences(run, tmp_path / "fixed2") == (), "as many steps, once by epochs"
    python = shutil.copytree(run, tmp_path / "python")  # which records what the command line leaves open
    config, manifest = yaml.safe_load((python / "config.yaml").read_text()), Run.open(run).manifest
    config["data"] |= {"seed": manifest["seeds"]["shots"], "templates": manifest["templates"]}
    (python / "config.yaml").write_text(yaml.safe_dump(config))
    assert Run.open(run).config.data.templates is None and differences(run, python) == ()


def test_another_method_is_told_by_its_name_alone(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["method"] = {"name": "pmg", "prompts": config["method"]["prompts"]}
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    assert [name for name, *_ in differences(run, other)] == ["method.name"]
    assert differences(run, tmp_path) == ()
