"""Unreadable images in a suite: named with the way out that a suite has, and left out where it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apd.bench import bench, load_suite, make_plan
from apd.data import load_data

from .models import save_colours
from .suites import Write, here, silent, table_rows


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
    failures = bench(load_suite(suite_of(write, photos)), out, machine=here(), say=silent)
    assert len(failures) == 2 and all("skip_bad_images: true" in error for error in failures.values())
    table = (out / "table.md").read_text()
    assert "No run of this protocol has come to its end." in table and "Published by others" not in table

    skipping = load_suite(suite_of(write, photos, skip_bad_images=True))
    assert bench(skipping, out, machine=here(), say=silent) == {}
    rows = table_rows(out)
    assert {row["method"] for row in rows} == {"zero-shot", "advvlp"}
    whole = len(load_data(photos, shots=2).test)
    assert {row["n"] for row in rows} == {str(whole - 1)}
    assert "Published by others" in (out / "table.md").read_text()


def test_leaving_images_out_is_part_of_the_identity_and_nothing_else_is(write: Write, photos: Path) -> None:
    plain, stated, skipping = (
        make_plan(load_suite(suite_of(write, photos, **entry)))
        for entry in ({}, {"skip_bad_images": False}, {"skip_bad_images": True})
    )
    assert plain.jobs.keys() == stated.jobs.keys() and plain.rows == stated.rows
    assert not plain.jobs.keys() & skipping.jobs.keys()
    evals = [{key for job in plan.jobs.values() for key in job.evals} for plan in (plain, skipping)]
    assert evals[0] and not evals[0] & evals[1]


def test_the_command_line_does_not_promise_that_trying_again_helps(
    write: Write, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from apd.cli import main

    monkeypatch.setattr("apd.bench.find_machine", lambda *_: here())
    monkeypatch.setattr("sys.argv", ["apd", "bench", str(suite_of(write, photos)), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        main()
    last = capfd.readouterr().err.splitlines()[-1]
    assert stop.value.code == 1 and last.startswith("Next: fix") and "again" not in last
