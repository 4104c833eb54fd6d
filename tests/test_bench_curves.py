"""Curves of a suite: over labelled images per class, and over unlabelled images."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from apd.bench.job import EvalOutcome, Outcome
from apd.bench.plan import Plan, TableRow, make_plan
from apd.bench.protocols import EvalSpec
from apd.bench.report.curves import _reach, pictures, write_curves
from apd.bench.report.plots import IMAGES, SEEDS, Point, save_picture
from apd.bench.report.rows import rows, write_rows
from apd.bench.report.tables import make_tables
from apd.bench.suite import load_suite

from .refusals import refused
from .suites import Write, here

pytestmark = pytest.mark.usefixtures("short_checks", "brief_teachers")

SUITES = Path(__file__).parents[1] / "suites"
EPS = {"a": "1/255", "b": "2/255"}


def measured(right: int, n: int = 20) -> EvalOutcome:
    """As many images right under attack, and all of them clean."""
    attacked = "1" * right + "0" * (n - right)
    return EvalOutcome("same", {"clean": "1" * n, "pgd-5": attacked, "worst": attacked}, 1.0)


def plan_of(axis: str, numbers: dict[str, tuple[int, ...]]) -> tuple[Plan, dict[str, Outcome]]:
    """A plan of two methods over the numbers of each data set; more images are right at larger ones, and for larger seeds."""
    planned, outcomes = [], {}
    for data, values in numbers.items():
        spec = EvalSpec("test", "test", data, EPS[data], ("pgd-5",), 20)
        for place, number in enumerate(values):
            shots, images = (number, None) if axis == "shots" else (4, number)
            for method, seeds in (("zero-shot", (None,)), ("apd", (0, 1))):
                for seed in seeds:
                    job = f"{method} {data} {number} {seed}"
                    right = 5 if seed is None else 8 + 2 * place + seed
                    planned.append(TableRow("few-shot", data, method, shots, seed, job, {"k": spec}, unlabelled=images))
                    outcomes[job] = Outcome(job, job, evals={"k": measured(right)})
    return Plan("curves", tuple(planned)), outcomes


def harmonic(right: int) -> float:
    return statistics.harmonic_mean([100, 5 * right])


def test_a_curve_over_shots_has_the_mean_and_a_panel_for_each_data_set() -> None:
    found = list(pictures(make_tables(*plan_of("shots", {"a": (1, 2, 4), "b": (1, 2, 4)}))))
    names = ["few-shot pgd-5 over shots", "few-shot harmonic mean over shots"]
    assert [picture.name for picture in found] == names
    panels = found[1].panels
    assert [title.split(",")[0] for title in panels] == ["mean over 2 data sets", "a", "b"]
    assert "2/255" in list(panels)[2] and "eps" not in found[1].note
    for lines in panels.values():
        apd, zero_shot = lines["apd"], lines["zero-shot"]
        assert apd.xs == zero_shot.xs == (1, 2, 4) and (apd.constant, zero_shot.constant) == (False, True)
        for place, point in enumerate(apd.ys):
            values = [harmonic(8 + 2 * place + seed) for seed in (0, 1)]
            assert point.value == pytest.approx(statistics.mean(values))
            assert point.bar[0] == pytest.approx(statistics.stdev(values)), "over seeds"
        assert [point.value for point in zero_shot.ys] == [pytest.approx(harmonic(5))] * 3


def test_a_curve_over_unlabelled_images_ends_where_its_data_set_does() -> None:
    found = list(pictures(make_tables(*plan_of("unlabelled", {"a": (0, 100, 900), "b": (0, 100)}))))
    assert [picture.axis for picture in found] == ["unlabelled"] * 2 and "4 labelled per class" in found[0].name
    xs = [lines["apd"].xs for lines in found[1].panels.values()]
    assert xs == [(0, 100), (0, 100, 900), (0, 100)]


def test_the_mean_is_one_curve_whatever_the_order_of_the_data_sets() -> None:
    plan, outcomes = plan_of("shots", {"a": (1, 2, 4), "b": (1, 2, 4)})
    last = [row for row in plan.rows if row.shots == 4]
    turned = Plan("curves", (*(row for row in plan.rows if row.shots != 4), *reversed(last)))
    panels = list(pictures(make_tables(turned, outcomes)))[1].panels
    assert panels["mean over 2 data sets"]["apd"].xs == (1, 2, 4)


def test_the_note_says_what_the_bars_that_are_drawn_are() -> None:
    plan, outcomes = plan_of("shots", {"a": (1, 2, 4)})
    one_seed = [row for row in plan.rows if row.seed != 1]
    # Another method has two seeds, but at one number of shots alone: it is no curve.
    alone = [replace(row, method="once") for row in plan.rows if row.method == "apd" and row.shots == 4]
    for planned, wanted in ((plan.rows, [SEEDS, SEEDS]), ((*one_seed, *alone), [IMAGES, "one training each"])):
        notes = [picture.note for picture in pictures(make_tables(Plan("curves", planned), outcomes))]
        assert [note.rpartition("; ")[2] for note in notes] == wanted


def test_a_method_of_one_number_is_left_to_the_tables() -> None:
    plan, outcomes = plan_of("shots", {"a": (1, 2, 4)})
    alone = [replace(row, method="once") for row in plan.rows if row.method == "apd" and row.shots == 4]
    (panel,) = list(pictures(make_tables(Plan("curves", (*plan.rows, *alone)), outcomes)))[1].panels.values()
    assert panel.keys() == {"zero-shot", "apd"}


def test_one_number_is_no_curve() -> None:
    assert not list(pictures(make_tables(*plan_of("shots", {"a": (4,), "b": (4,)}))))


@pytest.mark.parametrize("axis", ["shots", "unlabelled"])
def test_pictures_are_light_and_small(tmp_path: Path, axis: str) -> None:
    pytest.importorskip("matplotlib")
    values = (1, 2, 4) if axis == "shots" else (0, 100, 900)
    files = write_curves(tmp_path, make_tables(*plan_of(axis, {"a": values, "b": values})))
    assert len(files) == 2
    for file in files:
        assert file.stat().st_size < 100_000
        with Image.open(file) as image:
            colours = image.convert("L").histogram()
            assert image.width > 800 and colours[255] > sum(colours) / 2


def growing(write: Write, colours: Path, rows: dict[str, Any] | None = None, **block: Any) -> Path:
    data = {"colours": {"source": str(colours), "eps": "8/255", "shots": 1, "validation": 1}}
    block = {"protocol": "few-shot", "data": "colours", "methods": ["zero-shot", "advvlp"], **block}
    given = {} if rows is None else {"methods": rows}
    return write(data=data, blocks=[block], train={"steps": 2, "batch_size": 4, "attack": {"steps": 1}}, **given)


def test_a_curve_begins_without_what_its_row_says_of_unlabelled_images(write: Write, colours: Path) -> None:
    asked = {"pseudo_labels": "auto", "labelled_share": 0.5}
    methods = {"named": {"name": "advvlp", "train": asked}, "advvlp": "advvlp"}
    file = growing(write, colours, unlabelled=[0, 5], methods=["named", "advvlp"], rows=methods)
    plan = make_plan(load_suite(file))
    jobs = {(row.method, row.unlabelled): plan.jobs[row.job] for row in plan.rows}
    assert jobs["named", 0] == jobs["advvlp", 0], "nobody labels images that are not there"
    assert jobs["named", 5].id != jobs["advvlp", 5].id
    found = jobs["named", 5].config
    assert found is not None and found.train.pseudo_labels == "auto" and found.train.labelled_share == 0.5
    with refused("methods.named", "train.labelled_share=0.5", "unlabelled", "remove it"):
        make_plan(load_suite(growing(write, colours, methods=["named"], rows=methods)))


def test_who_labels_the_images_is_part_of_a_training_named_or_not(write: Write, colours: Path) -> None:
    methods: dict[str, Any] = {"usual": "advvlp"}
    methods |= {name: {"name": "advvlp", "train": {"pseudo_labels": name}} for name in ("best", "auto", "probe")}
    plan = make_plan(load_suite(growing(write, colours, unlabelled=[5], methods=list(methods), rows=methods)))
    jobs = {row.method: row.job for row in plan.rows}
    assert jobs["usual"] == jobs["best"] and len({*jobs.values()}) == 3


def test_pictures_of_different_titles_are_different_files(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    long = "mean over " + ", ".join(f"a-data-set-of-{i}" for i in range(30))
    titles = ["few-shot 猫, 4 shots", "few-shot 犬, 4 shots", "dtd-10", "dtd_10", long, f"{long}, other"]
    files = [save_picture(tmp_path, title, Figure()) for title in titles]
    assert len({file.name.casefold() for file in files}) == len(titles)
    assert all(file.is_file() and len(file.name) < 200 for file in files) and files[2].name == "dtd-10.png"


def test_a_block_varies_the_number_of_unlabelled_images(write: Write, colours: Path, tmp_path: Path) -> None:
    plan = make_plan(load_suite(growing(write, colours, unlabelled=[0, 5])))
    assert [(row.method, row.unlabelled) for row in plan.rows] == [
        (method, number) for number in (0, 5) for method in ("zero-shot", "advvlp")
    ]
    configs = [job.config.data for job in plan.jobs.values() if job.config]
    assert [(c.unlabelled, c.unlabelled_limit) for c in configs] == [(None, None), ("rest", 5)]
    without = make_plan(load_suite(growing(write, colours)))
    assert set(without.jobs) < set(plan.jobs), "a training without unlabelled images is the same training"
    assert "unlabelled" not in without.to_json() and Plan.from_json(plan.to_json()).rows == plan.rows

    outcomes = {report.job: report.outcome for report in here().run(list(plan.jobs.values()), tmp_path)}
    assert all(outcomes.values())
    table = list(rows(plan, outcomes))  # type: ignore[arg-type]
    assert {row["unlabelled"] for row in table} == {0, 5}
    write_rows(tmp_path, plan, outcomes)  # type: ignore[arg-type]
    assert (tmp_path / "results.csv").read_text().splitlines()[0].endswith(",unlabelled")


@pytest.mark.parametrize(
    ("block", "names"),
    [
        ({"unlabelled": 900}, ["data.colours", "900"]),
        ({"unlabelled": [-1]}, ["unlabelled", "-1"]),
        ({"unlabelled": 3, "protocol": "teacher-study"}, ["unlabelled", "teacher-study"]),
        ({"unlabelled": 3, "methods": "own"}, ["methods.own", "unlabelled"]),
    ],
)
def test_numbers_that_mean_nothing_are_refused(
    write: Write, colours: Path, block: dict[str, Any], names: list[str]
) -> None:
    block = {"protocol": "few-shot", "data": "colours", "methods": "advvlp", **block}
    methods = {"advvlp": "advvlp", "own": {"name": "advvlp", "data": {"unlabelled": "rest"}}}
    with refused(*names):
        make_plan(load_suite(write(blocks=[block], methods=methods)))


def test_a_data_set_may_have_a_model_of_its_own(write: Write, colours: Path, siglip_folder: Path) -> None:
    colour = {"source": str(colours), "eps": "8/255", "shots": 2}
    data = {"colours": colour, "again": {**colour, "model": str(siglip_folder)}}
    block = {"protocol": "few-shot", "data": ["colours", "again"], "methods": ["zero-shot", "advvlp"]}
    plan = make_plan(load_suite(write(data=data, blocks=[block])))
    models = {row.data: plan.jobs[row.job].model for row in plan.rows}
    assert models["again"] == str(siglip_folder) != models["colours"]
    assert len(plan.jobs) == 4, "the model is part of what a run is"
    crossed = {"protocol": "cross-dataset", "data": "colours", "to": "again", "methods": "advvlp"}
    with refused("'colours'", "'again'", "to"):
        load_suite(write(data=data, blocks=[crossed]))


@pytest.mark.testbed
@pytest.mark.parametrize("name", ["few-shot", "growth"])
def test_every_row_of_the_curves_takes_as_many_steps(name: str, testbed: Path) -> None:
    plan = make_plan(load_suite(SUITES / f"{name}.yaml", root=testbed))
    assert {job.config.train.steps for job in plan.jobs.values() if job.config} == {220}
    numbers = {row.shots if name == "few-shot" else row.unlabelled for row in plan.rows}
    assert numbers == ({1, 2, 4, 8, 16} if name == "few-shot" else {0, 100, 300, 900, 1000, 2400})


@pytest.mark.parametrize(("value", "limits"), [(100.0, (90, 100)), (0.0, (0, 10)), (42.0, (40, 50))])
def test_an_axis_has_two_ends(value: float, limits: tuple[float, float]) -> None:
    assert _reach([Point(value), Point(value)]) == limits
