"""The benchmark's own code: both sides of a comparison compute the same, and the floor is no more than it must be."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import apd
from apd.methods.base import Step
from benchmarks.cases import CONTRACT, Case, Options, Results, run
from benchmarks.geometry import GEOMETRIES, class_names, cut_length, save
from benchmarks.measure import compared, interleaved
from benchmarks.step import THREAT, Problem, floor, ours, problem, published
from benchmarks.step_rows import FLOORS, cases, method_settings, predicted
from benchmarks.towers import Towers

MINI = GEOMETRIES["mini"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(MINI, tmp_path_factory.mktemp("models") / "mini")


def build(folder: Path, kind: str, batch: int = 3, classes: int = 12, dtype: torch.dtype = torch.float32) -> Problem:
    encoder = apd.load_clip(folder, dtype=dtype)
    p = problem(encoder, Towers.load(folder, encoder, dtype), *method_settings(kind, MINI), batch, classes)
    return replace(p, method=p.method.to(dtype), x=p.x.to(dtype))


def gradients(p: Problem) -> dict[str, Tensor]:
    return {name: q.grad.clone() for name, q in p.method.named_parameters() if q.grad is not None}


def gflop(function: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


def test_ours_and_the_published_step_agree_on_the_same_adversarial_images(folder: Path) -> None:
    p = build(folder, "fap")
    x_adv = THREAT.random_start(p.x, torch.arange(3) + 7)
    theirs = published(p, x_adv)
    wanted = gradients(p)
    p.method.zero_grad()
    loss = sum(p.method.loss(Step(p.x, p.labels, p.method.student.bind()), x_adv).values())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(theirs), rel=1e-5)
    assert wanted.keys() == gradients(p).keys() and wanted
    for name, gradient in gradients(p).items():
        assert float((gradient - wanted[name]).norm()) <= 1e-5 * float(wanted[name].norm()), name


def test_a_whole_step_agrees_in_float64(folder: Path) -> None:
    p = build(folder, "fap", dtype=torch.float64)
    theirs, wanted = published(p), gradients(p)
    mine = ours(p)()
    assert float(mine) == pytest.approx(float(theirs), rel=1e-9)
    for name, gradient in gradients(p).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-7, atol=1e-10)


def test_towers_are_the_encoder_s(folder: Path) -> None:
    p = build(folder, "fap")
    encoder, prompts = p.method.student.encoder, p.prompts
    with torch.no_grad():
        for mine, theirs in (
            (encoder.encode_image(p.x, prompts.visual()), p.towers.image(p.x, prompts.visual())),
            (encoder.encode_image(p.x), p.towers.image(p.x)),
            (encoder.encode_text(p.ids(), prompts.text()), p.towers.text(p.ids(), prompts.text())),
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", FLOORS)
def test_passes_are_counted_right(folder: Path, kind: str) -> None:
    """The floor does the passes that it claims, ours does hardly more, the published step all of its twelve."""
    p = build(folder, kind)
    ours(p)()  # what is computed once a run
    bare, mine = gflop(floor(p, **FLOORS[kind][0])), gflop(ours(p))
    least, most = predicted(kind, MINI, 3, 12)
    # The counter does not know the CPU's fused attention, and a backward skips what comes before the first prompt.
    assert bare == pytest.approx(least, rel=0.08)
    assert mine <= 1.03 * bare
    if kind == "fap":
        assert gflop(lambda: published(p)) == pytest.approx(most, rel=0.15)


def test_class_names_are_different_and_cut_where_the_floor_says(folder: Path) -> None:
    assert len(set(class_names(10_000))) == 10_000
    encoder = apd.load_clip(folder)
    for count in (10, 30):
        ids = encoder.prompt_ids([f"{name}." for name in class_names(count)], 2)
        assert encoder.trim(ids).shape == (count, cut_length(2)) and cut_length(2) == 12


def test_rounds_take_turns_and_ratios_are_paired() -> None:
    ticks = itertools.count()
    seconds = {"ours": iter([1, 2, 1]), "floor": iter([1, 1, 2]), "reference": iter([10, 40])}
    order: list[str] = []
    now = [0.0]

    def function(name: str) -> Any:
        def work() -> None:
            next(ticks)
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
    one = compared({"ours": [2.0], "floor": [1.0]})
    assert one["ratio_floor"] == 2 and one["ratio_reference"] is None and one["spread"]["ratio_floor"] is None


def test_a_known_row_is_not_measured_again(tmp_path: Path) -> None:
    file, calls = tmp_path / "step.json", []

    def case(size: int) -> Case:
        return Case("row", {"size": size}, 0.0, lambda: calls.append(size) or {"ours_s": 1.0})

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
    again(replace(quick, again=True), 2), again(replace(quick, only="other"), 3)
    assert calls == [1, 2, 2, 2]
    (row,) = json.loads(file.read_text())
    assert set(CONTRACT) | {"machine"} <= row.keys() and row["floor_s"] is None
    file.write_text(json.dumps([row | {"machine": "another"}]))
    assert Results(file, quick).rows == []


def test_the_quick_suite_fits_what_it_does_not_measure(tmp_path: Path) -> None:
    options = Options(quick=True, geometry="mini", results=tmp_path)
    results = Results(tmp_path / "step.json", options)
    run(cases(options, results), results, say=lambda _: None)
    rows = {row["name"]: row for row in json.loads((tmp_path / "step.json").read_text())}
    headline, far = rows["fap-step-b4-c100-mini"], rows["fap-step-b4-c1000-mini"]
    assert headline["extrapolated"] and headline["fitted"].keys() == {"reference"} and headline["rounds"]["ours"] == 2
    assert far["fitted"]["ours"]["classes"] == [2, 20, 100] and far["fitted"]["reference"]["classes"] == [2, 20]
    line = far["fitted"]["reference"]
    assert headline["reference_s"] == pytest.approx(line["a"] + 100 * line["b"])
    assert headline["ratio_reference"] == pytest.approx(headline["reference_s"] / headline["ours_s"])
    assert not rows["fap-step-b4-c20-mini"]["extrapolated"]
    assert rows["apd-online-step-b4-c20-mini"]["floor_s"] and rows["apd-online-step-b4-c20-mini"]["reference_s"] is None
