"""Answers withheld below a confidence: how many images are still answered, and how many wrongly, clean and under attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from apd.attacks import PGD, Objective, ThreatModel, cross_entropy, sample_seeds
from apd.models.calibration import probabilities
from apd.report.charts import Chart, Line, line_chart
from apd.report.facts import RunFacts
from apd.report.wall import Seen, evaluated_images

STEPS, BATCH = 20, 32
"""Steps of the attack, and images at a time."""
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Confidences below which an answer is withheld."""


def measure_confidence(facts: RunFacts, seen: Seen, limit: int) -> dict[str, Any]:
    """Measure what abstaining is worth, on at most ``limit`` of the evaluated images.

    The attack is PGD that does not stop where the class flips: it goes on to make the wrong class as probable as it can.
    An attack that stops there leaves low confidences, and abstaining would look better than it is.

    Returns:
        ``n``, ``steps`` and ``points`` by threshold.
    """
    outcomes, summary = facts.outcomes, facts.summary
    assert outcomes is not None
    index = sorted(range(len(outcomes)), key=lambda i: outcomes.pixels[i])[
        :limit
    ]  # as good as at random, and repeatable
    x, labels, ids = evaluated_images(seen, outcomes, index, summary)
    threat, model = ThreatModel(summary["eps"], summary["norm"]), seen.classifier.frozen()
    found: dict[str, list[Tensor]] = {"clean": [], "attacked": []}
    for first in range(0, len(ids), BATCH):
        part = slice(first, first + BATCH)
        seeds = sample_seeds(ids[part], summary["seed"], "start")
        attacked = PGD(STEPS)(Objective(model, cross_entropy, labels[part]), x[part], threat, seeds)
        for name, images in (("clean", x[part]), ("attacked", attacked)):
            with torch.no_grad():
                found[name].append(probabilities(model(images), facts.calibration).cpu())
    shown = {name: torch.cat(parts) for name, parts in found.items()}
    points = [
        {"threshold": at, **{name: _above(p, labels.cpu(), at) for name, p in shown.items()}} for at in THRESHOLDS
    ]
    return {"n": len(ids), "steps": STEPS, "points": points}


def _above(shown: Tensor, labels: Tensor, threshold: float) -> dict[str, float]:
    """Shares of all images in percent: answered at this confidence or above, and of these wrongly."""
    confidence, guesses = shown.max(dim=1)
    answered = confidence >= threshold
    wrong = answered & (guesses != labels)
    return {
        "answered": round(100 * float(answered.float().mean()), 2),
        "wrong": round(100 * float(wrong.float().mean()), 2),
    }


def confidence_chart(points: Sequence[Mapping[str, Any]]) -> Chart:
    """Shares of images that are answered, and answered wrongly, by threshold."""
    lines = []
    for kind, key, name, style in (
        ("clean", "answered", "clean images answered", "third"),
        ("attacked", "answered", "attacked images answered", "own"),
        ("attacked", "wrong", "attacked images answered wrongly", "wrong"),
    ):
        values = [(100 * point["threshold"], point[kind][key]) for point in points]
        lines.append(Line(name, style, values, [f"from {x:g} %, {name}: {y:.1f} %" for x, y in values]))
    return line_chart(
        "Answers from a confidence on",
        "Shares of images that are answered if answers below a confidence are withheld.",
        lines,
        ("least confidence in %", "images in %"),
        percent=True,
        x_ticks=[(float(x), str(x)) for x in range(0, 101, 25)],
    )
