"""Figures and paired differences, against sums written out and against a bootstrap written out."""

from __future__ import annotations

import io
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from apd.bench.job import EvalOutcome, Outcome
from apd.bench.plan import Plan, TableRow
from apd.bench.protocols import EvalSpec, Metric
from apd.bench.report.compare import Cell, bootstrap_of_means, difference, mean_std, value
from apd.bench.report.plots import Point, write_plots
from apd.bench.report.tables import best_methods, latex, make_tables, markdown
from apd.bench.report.terminal import drawn as drawn_tables
from apd.evaluation.statistics import AS_GOOD_MARGIN, paired_bootstrap, wilson

from .refusals import contains

HARMONIC = Metric("H", (("test", "clean"), ("test", "worst")), main=True)
WORST = Metric("worst", (("test", "worst"),), main=True)


def cell(clean: str, worst: str, images: str = "same") -> Cell:
    return {"test": EvalOutcome(images, {"clean": clean, "worst": worst}, 1.0)}


def drawn(seed: int, share: float, n: int = 120) -> Cell:
    rng = np.random.default_rng(seed)
    clean = rng.random(n) < 0.8
    worst = clean & (rng.random(n) < share)
    return cell(*("".join(str(int(mark)) for mark in marks) for marks in (clean, worst)))


def test_figures() -> None:
    a = {0: cell("1110", "1000"), 1: cell("1111", "1100")}
    assert value(a[0], HARMONIC) == pytest.approx(2 / (1 / 75 + 1 / 25))
    assert value(cell("1110", "0000"), HARMONIC) == 0
    assert value(a[0], Metric("m", HARMONIC.parts, "arithmetic")) == 50
    found = mean_std([a], WORST)
    assert (found.mean, found.deviation) == (37.5, pytest.approx(statistics.stdev([25, 50])))
    assert mean_std([{None: a[0]}], WORST).deviation is None
    # Two data sets: the mean over them, seed by seed.
    b = {0: cell("11", "11"), 1: cell("11", "00")}
    assert mean_std([a, b], WORST).deviation == pytest.approx(statistics.stdev([62.5, 25]))


def test_accuracies_are_compared_by_the_paired_bootstrap_over_data_sets() -> None:
    a = [{seed: drawn(seed, 0.6) for seed in (0, 1, 2)}, {seed: drawn(seed + 9, 0.6, 50) for seed in (0, 1)}]
    b = [{seed: drawn(seed + 20, 0.4) for seed in (0, 1)}, {None: drawn(33, 0.4, 50)}]
    marks = lambda run: [mark == "1" for mark in run["test"].right["worst"]]  # noqa: E731
    left = [marks(a[0][seed]) + marks(a[1][seed]) for seed in (0, 1)]
    right = [marks(b[0][seed]) + marks(b[1][None]) for seed in (0, 1)]
    assert difference(a, b, WORST) == paired_bootstrap(left, right, ["x"] * 120 + ["y"] * 50)


def test_other_images_are_not_paired() -> None:
    assert difference([{0: cell("11", "10", "here")}], [{0: cell("11", "10", "there")}], WORST) is None
    assert difference([{0: cell("11", "10")}], [{1: cell("11", "10")}], WORST) is None


def test_harmonic_means_are_compared_as_by_drawing_images_one_by_one() -> None:
    pairs = [(drawn(seed, 0.7), drawn(seed + 5, 0.4)) for seed in (0, 1)]
    found = bootstrap_of_means([pairs], HARMONIC)
    rights = np.array(
        [[[list(map(int, run["test"].right[k])) for k in ("clean", "worst")] for run in p] for p in pairs]
    )
    rng, means = np.random.default_rng(1), []
    for _ in range(4000):
        index = rng.integers(0, 120, 120)
        accuracy = 100 * rights[..., index].mean(axis=-1)  # (seeds, 2 methods, 2 attacks)
        h = [[statistics.harmonic_mean(method) for method in run] for run in accuracy.tolist()]
        means.append(statistics.mean(run[0] - run[1] for run in h))
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.mean == pytest.approx(statistics.mean(value(a, HARMONIC) - value(b, HARMONIC) for a, b in pairs))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.8), pytest.approx(high, abs=0.8))
    assert found == difference([dict(enumerate(a for a, _ in pairs))], [dict(enumerate(b for _, b in pairs))], HARMONIC)


def test_the_general_bootstrap_agrees_with_the_simple_one() -> None:
    pairs = [(drawn(seed, 0.7), drawn(seed + 5, 0.4)) for seed in (0, 1)]
    general = bootstrap_of_means([pairs], WORST)
    simple = difference([{0: pairs[0][0], 1: pairs[1][0]}], [{0: pairs[0][1], 1: pairs[1][1]}], WORST)
    assert simple is not None and general.mean == pytest.approx(simple.mean)
    assert (general.low, general.high) == (pytest.approx(simple.low, abs=0.8), pytest.approx(simple.high, abs=0.8))


def plan_of(data: dict[str, dict[str, Cell]]) -> tuple[Plan, dict[str, Outcome]]:
    """A few-shot plan: data set, to method, to its run of seed 0."""
    entries, outcomes = [], {}
    for name, methods in data.items():
        spec = EvalSpec("test", "test", name, "1/255", ("pgd-5",), None)
        for method, run in methods.items():
            job = f"{method} {name}"
            entries.append(TableRow("few-shot", name, method, 4, 0, job, {"key": spec}))
            right = {**run["test"].right, "pgd-5": run["test"].right["worst"]}
            outcomes[job] = Outcome(job, job, evals={"key": EvalOutcome("same", right, 1.0)})
    return Plan("a_plan", tuple(entries)), outcomes


def test_methods_that_agree_on_all_images_have_an_interval() -> None:
    one = [{0: drawn(0, 0.6)}, {0: drawn(1, 0.6, 50)}]
    for metric in (HARMONIC, WORST):
        found = difference(one, one, metric)
        assert found is not None
        assert found.mean == 0
        assert found.high == pytest.approx(-found.low) == pytest.approx(100 * (1 - 0.025 ** (1 / 100)))


def test_tables_mark_the_best_and_pair_it_with_the_runner_up() -> None:
    good, middle, bad = (
        cell("1" * 40, "1" * 36 + "0" * 4),
        cell("1" * 40, "1" * 20 + "0" * 20),
        cell("0" * 40, "0" * 40),
    )
    plan, outcomes = plan_of({"a": {"bad": bad, "good": good, "middle": middle}, "b": {"good": middle, "middle": good}})
    tables = make_tables(plan, outcomes)
    assert [table.title for table in tables] == ["a, 4 shots", "b, 4 shots", "mean over a, b, 4 shots"]
    assert tables[0].ranked(tables[0].main) == tables[0].ranked_contenders(WORST) == ["good", "middle", "bad"]
    assert set(tables[2].rows) == {"good", "middle"}
    text = markdown("x", tables[:1])
    assert "| good | 1 | **100.0** | **90.0** | **94.7** |" in text
    assert "| middle | 1 | **100.0** | 50.0 | 66.7 |" in text
    assert "better (middle)**" in text and "-90.0 [-97.5, -80.0] worse" in text
    assert r"\textbf{90.0}" in latex(tables) and r"few-shot: a, 4 shots" in latex(tables)
    best = best_methods(plan, outcomes, 2, ["few-shot"])
    assert list(best.values()) == [["good", "middle"], ["middle", "good"]]


def test_all_are_compared_with_the_method_that_is_asked_for() -> None:
    good, bad = cell("1" * 40, "1" * 36 + "0" * 4), cell("1" * 20 + "0" * 20, "0" * 40)
    plan, outcomes = plan_of({"a": {"bad": bad, "good": good}})
    tables = make_tables(replace(plan, against="bad"), outcomes)
    text = markdown("x", tables)
    assert "| difference to bad | clean | pgd-5 | harmonic mean |" in text
    assert "| good | +50.0 [+35.0, +65.0] better | +90.0" in text and "\n| bad | +" not in text
    assert Plan.from_json(replace(plan, against="bad").to_json()).against == "bad"
    assert make_tables(replace(plan, against="other"), outcomes)[0].against is None


def prose(text: str) -> list[str]:
    """The paragraphs beside the tables and headings."""
    return [line for line in text.splitlines() if line and line[0] not in "|#"]


def legends(text: str) -> list[str]:
    """The paragraphs that explain every verdict on a difference."""
    verdicts = ("better", "as good", "worse", "undecided", f"{AS_GOOD_MARGIN:g}")
    return [line for line in prose(text) if contains(line.lower(), *verdicts)]


def test_verdicts_on_differences_are_explained_where_there_are_any() -> None:
    """One pair reads as undecided from one side and as good from the other."""
    a, b = cell("1" * 40, "1" * 20 + "0" * 20), cell("1" * 40, "1" * 22 + "0" * 18)
    plan, outcomes = plan_of({"a": {"one": a, "two": b}})
    texts = {other: markdown("x", make_tables(replace(plan, against=other), outcomes)) for other in ("one", "two")}
    assert "+5.0 [+0.0, +12.5] as good" in texts["one"] and "-5.0 [-12.5, +0.0] undecided" in texts["two"]
    for text in (*texts.values(), markdown("x", make_tables(plan, outcomes))):
        assert len(legends(text)) == 1
    alone = plan_of({"a": {"one": a}})
    assert not legends(markdown("x", make_tables(*alone))), "nothing is compared"


def test_equal_best_methods_are_named() -> None:
    def ties(plan: Plan) -> list[str]:
        """The paragraphs that name a best method."""
        return [line for line in prose(markdown("x", make_tables(plan, outcomes))) if contains(line, "m1")]

    a, b, c = (cell("1" * 40, worst + "0" * 20) for worst in ("1" * 20, "01" * 10, "1" * 20))
    plan, outcomes = plan_of({"a": {"low": b, "m1": a, "m2": c}})
    (tie,) = ties(plan)
    assert contains(tie, "pgd-5", "m1", "m2") and not contains(tie, "low")
    assert not ties(replace(plan, against="low"))
    plan, outcomes = plan_of({"a": {"low": b, "m1": a}})
    assert not ties(plan)


def test_a_data_set_without_any_run_does_not_take_the_means_away() -> None:
    some = cell("11", "10")
    plan, outcomes = plan_of({"a": {"one": some}, "b": {"one": some}, "c": {"one": some}})
    del outcomes["one c"]
    assert make_tables(plan, outcomes)[-1].title == "mean over a, b, 4 shots"


def test_what_is_missing_is_left_out_not_counted_as_zero() -> None:
    plan, outcomes = plan_of({"a": {"one": cell("11", "10"), "two": cell("11", "11")}})
    del outcomes["two a"]
    (table,) = make_tables(plan, outcomes)
    assert list(table.rows) == ["one"]
    assert not make_tables(plan, {})[0].rows
    assert "### a" not in markdown("x", make_tables(plan, {}))


def seeded_plan(data: dict[str, dict[str, dict[int | None, Cell]]]) -> tuple[Plan, dict[str, Outcome]]:
    """Data set, to method, to its runs by seed; attacked twice."""
    entries, outcomes = [], {}
    for name, methods in data.items():
        spec = EvalSpec("test", "test", name, "1/255", ("pgd-5", "pgd-9"), None)
        for method, runs in methods.items():
            for seed, run in runs.items():
                job = f"{method} {name} {seed}"
                entries.append(TableRow("few-shot", name, method, 4, seed, job, {"key": spec}))
                right = {**run["test"].right, "pgd-5": run["test"].right["worst"], "pgd-9": run["test"].right["clean"]}
                outcomes[job] = Outcome(job, job, evals={"key": EvalOutcome("same", right, 1.0)})
    return Plan("a_plan", tuple(entries)), outcomes


def test_only_methods_on_the_same_seeds_compete_for_the_best() -> None:
    clip, low, high = drawn(0, 0.1), drawn(1, 0.4), drawn(2, 0.9)
    methods = {"clip": {None: clip}, "lucky": {0: high}, "steady": {0: low, 1: high}, "poor": {0: low, 1: clip}}
    (table,) = make_tables(*seeded_plan({"a": methods}))
    assert table.ranked(WORST) == ["lucky", "steady", "poor", "clip"], "the second stage attacks whoever looks good"
    assert table.ranked_contenders(WORST) == ["steady", "poor", "clip"]
    text = markdown("x", [table])
    figures = text.split("| difference")[0].splitlines()
    bold = {line.split(" | ")[0]: "**" in line for line in figures if line.startswith("| ")}
    assert (bold["| steady"], bold["| lucky"]) == (True, False)
    assert "| clip | any |" in text and "| lucky | 1 |" in text and "| steady | 2 |" in text
    (note,) = [line for line in prose(text) if contains(line, "lucky")]
    assert contains(note, "0", "1") and not contains(note, "steady") and note in latex([table])
    # lucky against steady: on seed 0 alone, where they differ most.
    found = difference([{0: high}], [{0: low}], WORST)
    assert found is not None
    (line,) = [line for line in text.splitlines() if line.startswith("| lucky") and "[" in line]
    assert f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}] better" in line
    (same,) = make_tables(*seeded_plan({"a": {"low": {0: low}, "high": {0: high}}}))
    assert len(legends(text)[0]) > len(legends(markdown("x", [same]))[0]), "on other seeds it is another difference"


def test_with_equal_seeds_nothing_has_to_be_said_of_them() -> None:
    methods = {"clip": {None: drawn(0, 0.1)}, "m1": {0: drawn(1, 0.4)}, "m2": {0: drawn(2, 0.9)}}
    (table,) = make_tables(*seeded_plan({"a": methods}))
    text = markdown("x", [table])
    assert table.contenders == list(methods)
    assert not [line for line in prose(text) if any(contains(line, name) for name in ("m1", "m2"))]


def test_a_mean_says_on_how_many_seeds_it_rests() -> None:
    run = drawn(1, 0.4)
    other, both = drawn(2, 0.9), {0: run, 1: run}
    plan, outcomes = seeded_plan({"a": {"one": {0: run, 1: other}, "two": both}, "b": {"one": {0: run}, "two": both}})
    tables = make_tables(plan, outcomes)
    assert tables[-1].column(WORST)["one"].mean == pytest.approx(value(run, WORST))
    text = markdown("x", tables[-1:])
    (seeds,) = [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| one |") and "[" not in line]
    assert contains(seeds, "1", "2")
    assert len(prose(text)) == len(prose(markdown("x", tables[:1]))) + 1, "a paragraph explains it"


def test_means_are_over_data_sets_with_equal_seeds_and_the_shots_that_each_has() -> None:
    runs = {0: drawn(1, 0.4), 1: drawn(2, 0.9)}
    plan, outcomes = seeded_plan({"a": {"one": runs}, "b": {"one": runs}, "c": {"one": {0: runs[0]}}})

    def titles(shots: dict[str, int]) -> list[str]:
        rows = tuple(replace(row, shots=shots[row.data]) for row in plan.rows)
        return [table.title for table in make_tables(replace(plan, rows=rows), outcomes) if "mean" in table.title]

    assert titles({"a": 16, "b": 16, "c": 16}) == ["mean over a, b, 16 shots"]
    assert titles({"a": 16, "b": 12, "c": 16}) == ["mean over a, b, 16 or 12 shots"]
    curve = tuple(replace(row, shots=shots) for shots in (1, 2) for row in plan.rows if row.data != "c")
    tables = make_tables(replace(plan, rows=curve), outcomes)
    assert [table.title for table in tables][-2:] == ["mean over a, b, 1 shots", "mean over a, b, 2 shots"]


def test_a_data_set_counts_once_in_a_mean() -> None:
    run = cell("1" * 40, "1" * 30 + "0" * 10)
    plan, outcomes = plan_of({"a": {"one": run}, "b": {"one": run}})
    fewer = [replace(row, evals={key: replace(spec, limit=8) for key, spec in row.evals.items()}) for row in plan.rows]
    tables = make_tables(replace(plan, rows=(*plan.rows, fewer[0])), outcomes)
    assert [table.title for table in tables if "mean" in table.title] == ["mean over a, b, 4 shots"]
    tables = make_tables(replace(plan, rows=(plan.rows[0], fewer[0])), outcomes)
    assert not [table.title for table in tables if "mean" in table.title]


def test_the_worst_of_several_attacks_has_a_column_and_of_one_has_none() -> None:
    (two,) = make_tables(*seeded_plan({"a": {"one": {0: drawn(1, 0.4)}}}))
    (one,) = make_tables(*plan_of({"a": {"one": drawn(1, 0.4)}}))
    assert [metric.name for metric in two.metrics] == ["clean", "pgd-5", "pgd-9", "worst", "harmonic mean"]
    assert [metric.name for metric in one.metrics] == ["clean", "pgd-5", "harmonic mean"]
    assert (two.main.name, one.main.name) == ("worst", "pgd-5")


def on_terminal(plan: Plan, outcomes: dict[str, Outcome], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(drawn_tables(make_tables(plan, outcomes), width))
    return capture.get()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_are_drawn_whole_whatever_the_width(width: int) -> None:
    name = "a method \x1b[31mwith a name that is much longer than anybody would like it to be"
    plan, outcomes = plan_of({"a": {name: drawn(0, 0.7), "short": drawn(1, 0.2)}})
    text = on_terminal(plan, outcomes, width)
    assert max(map(len, text.splitlines())) <= width and "\x1b" not in text and name[:9] in text
    assert "\\n" not in text
    words = " ".join(text.replace("│", " ").split())
    for table in make_tables(plan, outcomes):
        for metric in table.metrics:
            for figure in table.column(metric).values():
                assert f"{figure.mean:.1f}" in words
            assert metric.name.split()[0] in words


def test_columns_that_do_not_fit_go_to_further_tables() -> None:
    plan, outcomes = plan_of({"a": {"one": drawn(0, 0.7), "two": drawn(1, 0.2)}})
    wide, narrow = (on_terminal(plan, outcomes, width).splitlines() for width in (120, 44))
    heads = [sum("┃" in line and "seeds" in line for line in lines) for lines in (wide, narrow)]
    assert heads[0] == 1 and heads[1] > 1
    assert sum(line.startswith("│ one ") for line in narrow) > sum(line.startswith("│ one ") for line in wide)


def bars(figures: dict[str, dict[int | None, Cell]]) -> dict[str, Point]:
    """The bars of a table's main figures, by method."""
    from apd.bench.report import plots
    from apd.bench.report.tables import Table

    table = Table("few-shot", "a", "pgd-5", (WORST,), {label: (seeds,) for label, seeds in figures.items()})
    return plots.points_of(table, WORST)


def test_bars_are_the_deviation_over_seeds_or_the_interval_over_images() -> None:
    several = bars({"m": {0: cell("1111", "1000"), 1: cell("1111", "1100")}, "zero-shot": {None: cell("1111", "1000")}})
    deviation = statistics.stdev([25, 50])
    assert several["m"] == Point(37.5, (pytest.approx(deviation), pytest.approx(deviation)))  # type: ignore[arg-type]
    assert several["zero-shot"].bar == (0.0, 0.0), "it has no seeds"
    one = bars({"m": {0: cell("1" * 40, "1" * 30 + "0" * 10)}})["m"]
    low, high = wilson(30, 40)
    assert one.value == 75 and one.bar == (pytest.approx(75 - 100 * low), pytest.approx(100 * high - 75))
    full = bars({"m": {0: cell("11", "11"), 1: cell("11", "10")}})["m"]
    assert full.value + full.bar[1] <= 100, "no accuracy is above 100"


def test_axes_end_at_100_and_say_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    seen: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (seen.append(self), save(self, *a, **k))[1])
    plan, outcomes = plan_of({"a": {"one": drawn(0, 0.7), "two": drawn(1, 0.2)}})
    (file,) = write_plots(tmp_path, make_tables(plan, outcomes))
    assert file.read_bytes().startswith(b"\x89PNG")
    (axes,) = seen[0].axes
    assert axes.get_ylim() == (0, 100) and axes.get_xlim()[1] == 100
    assert 0 <= axes.get_xlim()[0] < 75, "every point is seen"
    assert "clean" in axes.get_xlabel() and "%" in axes.get_ylabel()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two"]  # type: ignore[union-attr]
