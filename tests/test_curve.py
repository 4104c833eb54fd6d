"""Accuracy against eps: the curve of a linear model, whose images fall at known budgets."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

import apd
from apd.attacks.threat import ThreatModel
from apd.evaluation.curve import Curve, measure_curve, measured_by, parse_budgets
from apd.evaluation.result import Result

from .command_line import Cli
from .refusals import refused
from .test_attacks_other import toy_data
from .test_l1 import linear_binary
from .toys import toy_clip


def binary_curve(budgets: list[float], bisections: int = 2) -> tuple[Curve, torch.Tensor]:
    """The curve of a linear model, and the exact minimal eps of each image: 0 where it is wrong already."""
    model, w = linear_binary()
    x = 0.5 + 0.4 * torch.rand(24, 3, 4, 4, generator=torch.Generator().manual_seed(1)) - 0.2
    gap = (x.flatten(1) @ w - w.sum() / 2) / w.abs().sum()
    labels = (gap < 0).long()
    labels[:3] = 1 - labels[:3]
    data = apd.Dataset.from_tensors("toy", ["a", "b"], train=(x, labels), test=(x, labels))
    stored = data.test.decode(apd.models.Preprocessing.plain(4)).images / 255  # rounded to 8 bits
    exact = ((stored.flatten(1) @ w - w.sum() / 2) / w.abs().sum()).abs()
    exact[:3] = 0

    def evaluation(**settings: object) -> Result:
        return apd.evaluate(model, data, attacks="margin-pgd", limit="all", control=False, quiet=True, **settings)  # type: ignore[arg-type]

    return measure_curve(measured_by(evaluation, checks=False), budgets, bisections), exact


def test_the_curve_is_that_of_the_exact_minimal_budgets() -> None:
    curve, exact = binary_curve([0.01, 0.03, 0.08], bisections=3)
    assert curve.points[0].eps == 0
    for point in curve.points:
        right = (exact > point.eps).float() if point.eps else (exact > 0).float()
        assert point.accuracy == pytest.approx(100 * float(right.mean()), abs=0.01)
    assert [point.accuracy for point in curve.points] == sorted((p.accuracy for p in curve.points), reverse=True)
    assert curve.median is not None
    low, high = curve.median
    assert low < float(exact.sort().values[len(exact) // 2]) <= high and high - low < 0.01
    area = sum(
        (b.eps - a.eps) * (a.accuracy + b.accuracy) / 2 for a, b in zip(curve.points, curve.points[1:], strict=False)
    )
    assert curve.expected == pytest.approx(area / 0.08, abs=0.02)
    assert curve.expected_undefended is None and curve.result.eps == 0.08


def test_a_curve_writes_eps_in_its_norm() -> None:
    curve, _ = binary_curve([0.2, 0.4], bisections=0)
    shown = {}
    for norm in ("linf", "l2"):
        console = Console(file=io.StringIO(), width=100)
        console.print(curve.model_copy(update={"norm": norm}).table())
        shown[norm] = console.file.getvalue()  # type: ignore[attr-defined]
    assert "51/255" in shown["linf"] and "0.2 " in shown["l2"] and "/255" not in shown["l2"]
    with refused("above 0", "0.25,0.5,1"):
        parse_budgets(["0"], "l2")


def test_a_median_beyond_the_curve_is_not_told() -> None:
    curve, _ = binary_curve([1e-4])
    assert curve.median is None and [point.eps for point in curve.points] == [0, 1e-4]


def test_budgets() -> None:
    assert parse_budgets(["2/255", "0", "1/255"], "linf") == [1 / 255, 2 / 255]
    for bad in (["0"], ["x"], ["8"]):
        with refused("eps"):
            parse_budgets(bad, "linf")
    assert ThreatModel(0.1).distance(torch.ones(2, 1), torch.zeros(2, 1)).tolist() == [1, 1]


def test_on_the_command_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apd.cli.evaluate._Asked.evaluation", lambda *args: lambda **more: _toy(**more))
    call = ("evaluate", "--model", "m", "--data", "d", "--curve", "0.01,0.02")
    told = json.loads(cli(*call, "--limit", 10, "--json").out)
    assert told["points"][0]["eps"] == 0 and {"expected", "median", "result"} <= set(told)
    assert "Median minimal eps" in cli(*call, "--limit", 10).out or told["median"] is None
    assert cli(*call, "--limit", 10, "--eps", "1/255").code == 2
    assert cli(*call).code == 2


def _toy(**more: object) -> Result:
    data = toy_data()
    classifier = apd.PromptedCLIP(toy_clip(3), None, data.class_names, data.templates)
    return apd.evaluate(classifier, data, attacks="pgd-5", limit=10, **{**more, "checks": False, "quiet": True})  # type: ignore[arg-type]


def test_budgets_of_numpy_are_numbers_and_none_are_refused() -> None:
    asked: list[str] = []
    measure = measured_by(lambda **given: asked.append(given["eps"]))
    for eps in np.linspace(0.25, 0.5, 2):
        measure(eps, False)
    assert asked == ["0.25", "0.5"]
    with refused("at least one budget"):
        measure_curve(measure, [])
