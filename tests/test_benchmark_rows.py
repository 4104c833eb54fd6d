"""The benchmark's rows: what is measured, predicted, kept, and shown on its page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.cases import CONTRACT, Case, Options, Results, run
from benchmarks.evaluation import agreement
from benchmarks.flops import counted
from benchmarks.geometry import GEOMETRIES
from benchmarks.measure import Side, compared, interleaved, matmul_rate
from benchmarks.page import BEGIN, END, NOTHING, write_page
from benchmarks.profile import OPERATORS, PARTS, profile
from benchmarks.startup import waiting_case
from benchmarks.step import problem
from benchmarks.step_rows import marginal_case, predicted
from benchmarks.switches import PASSES, STEPS, epoch, switch_case


def test_counts_are_rows_of_their_own_file(tmp_path: Path) -> None:
    chosen = ["--only", "*fap*", "*online*", "--geometry", "mini", "--label", "here", "--results", str(tmp_path)]
    with patch("benchmarks.flops.counted", lambda function, shapes_only=False: counted(function)):  # faster when small
        main(["--quick", "--suite", "flops", *chosen])
    rows = {row["name"]: row for row in json.loads((tmp_path / "flops-here.json").read_text())}
    assert rows.keys() == {f"{kind}-step-b4-c20-mini" for kind in ("fap", "apd-online")}
    fap, apd_row = rows["fap-step-b4-c20-mini"], rows["apd-online-step-b4-c20-mini"]
    assert fap["times_fewer"] == fap["reference_gflop"] / fap["ours_gflop"] > 1 and fap["ours_s"] is None
    assert "reference_gflop" not in apd_row and 0 < apd_row["ours_gflop"] < apd_row["floor_gflop"]


def test_rounds_take_turns_and_ratios_are_paired() -> None:
    seconds = {"ours": iter([1, 2, 1]), "floor": iter([1, 1, 2]), "reference": iter([10, 40])}
    order: list[str] = []
    now = [0.0]

    def function(name: str) -> Any:
        def work() -> None:
            order.append(name)
            now[0] += next(seconds[name])

        return work

    counts = {"ours": 3, "floor": 3, "reference": 2}
    times = interleaved({n: function(n) for n in counts}, counts, torch.device("cpu"), clock=lambda: now[0])
    assert order == ["ours", "floor", "reference", "floor", "reference", "ours", "ours", "floor"]
    row = compared(times)
    assert (row["ours_s"], row["reference_s"], row["floor_s"]) == (1, 25, 1)
    assert row["ratio_reference"] == 15 and row["spread"]["ratio_reference"] == [12.5, 17.5]
    assert row["ratio_floor"] == 1.0 and row["spread"]["ratio_floor"] == [0.75, 1.5]
    assert row["rounds"] == {"ours": 3, "reference": 2, "floor": 3}
    more = compared({"ours": [2.0], "floor": [1.0], "floor_default_kernels": [4.0], "reference_our_kernels": [8.0]})
    assert more["ratio_floor_default_kernels"] == 0.5 and more["ratio_reference_our_kernels"] == 4
    assert more["floor_default_kernels_s"] == 4 and more["rounds"]["reference_our_kernels"] == 1
    one = compared({"ours": [2.0], "floor": [1.0]})
    assert one["ratio_floor"] == 2 and one["ratio_reference"] is None and one["spread"]["ratio_floor"] is None


def test_who_has_taken_long_has_no_further_round() -> None:
    now = [0.0]

    def work(seconds: float) -> Any:
        return lambda: now.__setitem__(0, now[0] + seconds)

    sides = {"ours": work(1), "reference": work(57), "slow": work(61)}
    counts = dict.fromkeys(sides, 5)
    times = interleaved(sides, counts, torch.device("cpu"), patience=60, clock=lambda: now[0])
    assert {name: len(found) for name, found in times.items()} == {"ours": 5, "reference": 2, "slow": 1}


def test_the_prediction_follows_rounds_and_patience() -> None:
    cpu = torch.device("cpu")
    hour = matmul_rate(cpu, own_kernels=True) * 3600
    once = Side(hour, 1).seconds(cpu)
    assert once >= 3600 and Side(hour, 5).seconds(cpu) == once, "no second round of what takes longer than patience"
    assert Side(hour / 1e6, 5, warm=1).seconds(cpu) == pytest.approx(6 * once / 1e6)
    case = Case("row", {}, dict, {"ours": Side(hour, 1), "floor": Side(hour, 1)}, seconds=5)
    assert case.predicted(cpu) == pytest.approx(2 * once + 5)


def test_a_plan_measures_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        ["--quick", "--plan", "--suite", "step", "growth", "--only", "*-c20*", "growth-b*", "--results", str(tmp_path)]
    )
    shown = capsys.readouterr().out
    assert "step: 3 rows" in shown and "growth: 2 rows" in shown and "fap-step-b4-c20: about" in shown
    assert not list(tmp_path.iterdir())


def test_a_known_row_is_not_measured_again(tmp_path: Path) -> None:
    file, calls = tmp_path / "step.json", []

    def case(size: int) -> Case:
        return Case("row", {"size": size}, lambda: calls.append(size) or {"ours_s": 1.0})

    def again(options: Options, size: int) -> None:
        run([case(size)], Results(file, options), say=lambda _: None)

    quick = Options(quick=True)
    again(quick, 1), again(quick, 1)
    assert calls == [1]
    again(quick, 2)
    assert calls == [1, 2], "other settings"
    again(Options(), 2)
    assert calls == [1, 2, 2], "a quick row is not a full one"
    again(quick, 2), again(Options(), 2)
    assert calls == [1, 2, 2], "but a full one is enough"
    again(replace(quick, again=True), 2), again(replace(quick, only=("other",)), 3)
    assert calls == [1, 2, 2, 2]
    (row,) = json.loads(file.read_text())
    assert set(CONTRACT) | {"machine"} <= row.keys() and row["floor_s"] is None
    file.write_text(json.dumps([row | {"machine": "another"}]))
    assert Results(file, quick).rows == []


def test_the_quick_suite_fits_what_it_does_not_measure(tmp_path: Path) -> None:
    main(["--quick", "--suite", "step", "--geometry", "mini", "--results", str(tmp_path)])
    rows = {row["name"]: row for row in json.loads((tmp_path / "step.json").read_text())}
    headline, far = rows["fap-step-b4-c100-mini"], rows["fap-step-b4-c1000-mini"]
    assert headline["extrapolated"] and headline["fitted"].keys() == {"reference"} and headline["rounds"]["ours"] == 2
    assert far["fitted"]["ours"]["classes"] == [2, 20, 100] and far["fitted"]["reference"]["classes"] == [2, 20]
    line = far["fitted"]["reference"]
    assert headline["reference_s"] == pytest.approx(line["a"] + 100 * line["b"])
    assert headline["ratio_reference"] == pytest.approx(headline["reference_s"] / headline["ours_s"])
    assert not rows["fap-step-b4-c20-mini"]["extrapolated"]
    assert rows["apd-online-step-b4-c20-mini"]["floor_s"] and rows["apd-online-step-b4-c20-mini"]["reference_s"] is None


def test_a_marginal_class_is_a_difference(tmp_path: Path) -> None:
    def in_turn(functions: dict[str, Any], sides: object, device: object) -> dict[str, list[float]]:
        """Runs everything once, and says that a class takes 2 ms of ours and 5 ms bare, beside 1 s of all else."""
        for function in functions.values():
            function()
        cost = {"ours": 0.002, "floor": 0.005, "floor_default_kernels": 0.01}
        return {name: [1 + cost[name.split()[0]] * int(name.split()[1])] * 2 for name in functions}

    with patch("benchmarks.step_rows.take_turns", in_turn):
        row = marginal_case(Options(geometry="mini", results=tmp_path), few=10, many=200, rounds=2).measure()
    assert (row["ours_s"], row["floor_s"]) == pytest.approx((0.002, 0.005)) and row["ratio_floor"] == pytest.approx(0.4)


@pytest.mark.parametrize("kind", PASSES)
def test_a_switch_takes_the_passes_that_its_prediction_counts(tmp_path: Path, kind: str) -> None:
    options = Options(geometry="mini", results=tmp_path)
    run = epoch(options, "mini", 4, 5, kind)
    encoder, _ = options.load("mini")
    calls = {"forward": 0.0}
    tower = encoder.encode_image
    with patch.object(
        encoder, "encode_image", lambda *a: (calls.__setitem__("forward", calls["forward"] + 1), tower(*a))[1]
    ):
        run()
    # Every student's forward has a backward, the teacher's has none.
    teacher = 1 if kind == "free" else STEPS
    assert (2 * (calls["forward"] - teacher) + teacher) / STEPS == pytest.approx(PASSES[kind])


def test_a_switch_stands_beside_pgd(tmp_path: Path) -> None:
    case = switch_case(Options(geometry="mini", results=tmp_path), "free", "mini", 4, 5, rounds=2)
    row = case.measure()
    assert case.name == "apd-step-free-b4-c5-mini" and row["floor_s"] is None
    assert row["ratio_reference"] > 0 and row["rounds"]["reference"] == 2


def test_a_profile_is_a_table_of_before_and_after(tmp_path: Path) -> None:
    with patch(
        "benchmarks.profile.problem", lambda *given: problem(*given[:-1], 10)
    ):  # of 100 classes it takes seconds
        profile(Options(quick=True, geometry="mini", results=tmp_path), ("fap", "apd-online"))
    both, ours_alone = ((tmp_path / f"profile-{kind}-mini.md").read_text() for kind in ("fap", "apd-online"))
    assert "| part | published (s) | share | ours (s) | share |" in both and "| part | ours (s) | share |" in ours_alone
    assert all(f"| {part} |" in both for part in (*PARTS, *OPERATORS, "all"))


def test_agreement_counts_both_ways() -> None:
    mine = torch.tensor([True, True, True, False, False])
    theirs = torch.tensor([False, True, False, True, False])
    found = agreement(mine, theirs)
    assert found["disagreement"] == pytest.approx(0.6) and found["p_more_robust"] == pytest.approx(0.5)
    assert agreement(mine, mine)["p_more_robust"] == 1.0
    assert agreement(torch.ones(6).bool(), torch.zeros(6).bool())["p_more_robust"] == pytest.approx(1 / 64)


def test_the_page_shows_what_the_files_hold_and_keeps_the_rest(tmp_path: Path) -> None:
    docs, results = tmp_path / "docs", tmp_path / "results"
    docs.mkdir(), results.mkdir()
    page = docs / "benchmarks.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    (results / "fuzz.json").write_text('{"cases": 3}')  # of another program
    write_page(results, docs)
    assert page.read_text() == f"before\n{BEGIN}\n\n{NOTHING}\n\n{END}\nafter\n"

    def write(suite: str, *rows: dict[str, Any]) -> None:
        options = Options(quick=True)
        kept = Results(results / f"{suite}.json", options)
        for row in rows:
            kept.add(Case(row.pop("name"), row.pop("settings", {}), dict), row, 0.1)

    measured = compared({"ours": [1.0, 1.0], "reference": [12.0, 14.0], "floor": [1.0, 0.5]})
    write("step", {"name": "fap-step-b4-c20", **measured})
    guess = {"name": "far", **measured, "extrapolated": True, "fitted": {"ours": {}, "reference": {}}}
    write("step", guess)
    sizes = {"batch": 4, "steps": 2, "image_size": 32, "depth": 3}
    write(
        "growth",
        *(
            {"name": f"growth-classes-{c}", "settings": {"classes": c, **sizes}, "ours_s": c / 10, "peak_mb": 100.0}
            for c in (10, 1000)
        ),
        {"name": "growth-classes-9999", "settings": {"classes": 9999, **sizes}, "out_of_memory": True},
    )
    (results / "profile-fap.md").write_text("### tables of a profile\n")
    (results / "profile-fap-mini.md").write_text("### tables of another\n")
    write("step-other", {"name": "fap-step-b4-c20", **compared({"ours": [1.0], "reference": [11.0]})})
    write("flops", {"name": "fap-step-b4-c20", "ours_gflop": 2.0, "reference_gflop": 24.0, "times_fewer": 12.0})
    for name, of_another_program in (("export", '[{"run": "x"}]'), ("fuzz", '{"cases": 1}')):
        (results / f"{name}.json").write_text(of_another_program)
    write_page(results, docs)
    text = page.read_text()
    assert "### export" not in text and "### fuzz" not in text
    assert "| fap-step-b4-c20 | 2 | 24 | 12 |  |  | 11 (2), 13 (1) |" in text and "### flops" not in text
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| fap-step-b4-c20 | 1 | 13 | 0.75 | 13 [12.5, 13.5] | 1.5 [1.25, 1.75] | 2 / 2 / 2 | quick |" in text
    assert "tables of a profile" in text and "tables of another" not in text
    assert "extrapolated: ours, reference" in text and "out of memory" in text
    pictures = {file.name for file in (docs / "benchmarks").iterdir()}
    assert pictures == {"step.svg", "step-other.svg", "growth-classes.svg"}
    before = (docs / "benchmarks" / "step.svg").read_bytes()
    write_page(results, docs)
    assert (docs / "benchmarks" / "step.svg").read_bytes() == before and page.read_text() == text


def test_the_speeds_that_are_quoted_are_those_of_the_files() -> None:
    root = Path(__file__).parents[1]

    def rows(suite: str) -> dict[str, dict[str, Any]]:
        found = json.loads((root / "benchmarks" / "results" / f"{suite}.json").read_text())
        return {row["name"]: row for row in found}

    readme = (root / "README.md").read_text()
    lead = (root / "docs" / "benchmarks.md").read_text().split(BEGIN)[0]
    counts, two, one = (rows(suite) for suite in ("flops", "step", "step-one-core"))
    headline, measured = counts["fap-step-b4-c100"], two["fap-step-b4-c100"]
    assert headline["reference_gflop"] == pytest.approx(predicted("fap", GEOMETRIES["vit-b-32"], 4, 100)[1], rel=0.03)
    for figure in (headline["times_fewer"], measured["ratio_reference"], measured["ratio_reference_our_kernels"]):
        assert re.search(rf"\b{figure:.0f}\b", readme) and f"{figure:.1f}" in lead
    assert f"{headline['ours_gflop']:,.0f} GFLOP" in lead and f"{headline['reference_gflop']:,.0f} GFLOP" in lead
    for row in counts.values():
        assert row.get("times_fewer") is None or re.search(rf"\b{row['times_fewer']:.0f}\b", lead), row["name"]
    for name in ("fap-step-b4-c30", "fap-step-b4-c10"):
        for row in (two[name], one[name]):
            assert f"{row['ratio_reference']:.1f}" in lead and f"{row['ratio_reference_our_kernels']:.1f}" in lead


def test_the_wait_for_images_is_a_part_of_the_epoch(tmp_path: Path) -> None:
    row = waiting_case(Options(quick=True, geometry="mini", results=tmp_path), "mini", 2).measure()
    assert 0 < row["ours_s"] < row["epoch_s"] and row["share"] == row["ours_s"] / row["epoch_s"] and row["decode_s"] > 0
