"""Unreadable images in a suite: named with the way out that a suite has, and left out where it says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apd.bench import bench, load_suite, make_plan
from apd.bench.plan import Plan
from apd.bench.report.published import published_markdown
from apd.bench.report.rows import read_bench
from apd.bench.report.tables import make_tables, markdown
from apd.data import load_data

from .models import save_colours
from .suites import Write, here, table_rows

pytestmark = pytest.mark.usefixtures("short_checks")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of which one for testing and one for training cannot be read."""
    folder = save_colours(tmp_path / "photos")
    data = load_data(folder, shots=2, seed=0)
    for id_ in (data.test.ids[0], data.train.ids[0]):
        (folder / id_).write_bytes((folder / id_).read_bytes()[:70])
    return folder


def suite_of(write: Write, source: Path, **entry: Any) -> Path:
    blocks = [{"protocol": "few-shot", "data": "colours", "methods": ["zero-shot", "advvlp"]}]
    return write(
        data={"colours": {"source": str(source), "eps": "8/255", "shots": 2, **entry}}, blocks=blocks, limit=None
    )


def test_a_suite_says_how_to_go_on_without_them_and_goes_on(write: Write, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    failures = bench(load_suite(suite_of(write, photos)), out, machine=here())
    assert len(failures) == 2 and all("skip_bad_images: true" in error for error in failures.values())

    skipping = load_suite(suite_of(write, photos, skip_bad_images=True))
    assert bench(skipping, out, machine=here()) == {}
    rows = table_rows(out)
    assert {row["method"] for row in rows} == {"zero-shot", "advvlp"}
    whole = len(load_data(photos, shots=2).test)
    assert {row["n"] for row in rows} == {str(whole - 1)}
    plan = make_plan(skipping)
    assert Plan.from_json(plan.to_json()).image_size == plan.image_size not in (None, 224)
    published, text = "\n".join(published_markdown("few-shot", 224)), (out / "table.md").read_text()
    assert published and published not in text, "they are of other images"
    tables = make_tables(*read_bench(out))
    assert published in markdown("x", tables, 224)
    empty = [replace(table, rows={}) for table in tables]
    assert published not in markdown("x", empty, 224), "there is nothing beside which to put them"


def test_leaving_images_out_is_part_of_the_identity_and_nothing_else_is(write: Write, photos: Path) -> None:
    plain, stated, skipping = (
        make_plan(load_suite(suite_of(write, photos, **entry)))
        for entry in ({}, {"skip_bad_images": False}, {"skip_bad_images": True})
    )
    assert plain.jobs.keys() == stated.jobs.keys() and plain.rows == stated.rows
    assert not plain.jobs.keys() & skipping.jobs.keys()
    evals = [{key for job in plan.jobs.values() for key in job.evals} for plan in (plain, skipping)]
    assert evals[0] and not evals[0] & evals[1]


def test_bench_command_lists_failed_runs_with_their_way_out(
    write: Write, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from apd.cli import main

    monkeypatch.setattr("apd.bench.find_machine", lambda *_: here())
    monkeypatch.setattr("sys.argv", ["apd", "bench", str(suite_of(write, photos)), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        main()
    told = capfd.readouterr().err
    assert stop.value.code == 1 and told.count("skip_bad_images: true") >= 2, "each failed run, with its way out"
