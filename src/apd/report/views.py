"""What the page shows of a run: numbers of its folder, laid out for the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apd.attacks.threat import parse_eps
from apd.report import words
from apd.report.certified import certified_views
from apd.report.charts import Chart, Line, line_chart
from apd.report.facts import Confusion, RunFacts, eps_curve, per_class, series, training_log, versus_zero_shot
from apd.runs.learners import FORMS
from apd.runs.manifest import TRAIN_AGAIN
from apd.util.progress import pretty_seconds
from apd.util.tensors import read_tensors
from apd.util.text import quoted

FRAGILE = 5
"""Classes that are named as the most fragile."""
_OURS = "robust prompts"
GRID = 20
"""Classes of which the whole table of confusions is shown; of more, only the most frequent ones."""


def run_view(facts: RunFacts, place: int, curve: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """All that the page says of a run but for its images.

    Args:
        facts: the run.
        place: its number on the page, from 1.
        curve: points of accuracy against eps that were computed for the report.
    """
    return {
        "id": f"run{place}",
        "name": facts.name,
        "about": _about(facts),
        "certified": [] if facts.folder is None else certified_views(facts.run),
        "calibration": None if facts.calibration is None else facts.calibration.record(),
        "calibrated": "not calibrated" if facts.calibration is None else facts.calibration.describe(),
        "training": None if facts.folder is None else _training(facts),
        "settings": None if facts.folder is None else facts.config.to_yaml(),
        "cost": _cost(facts),
        "commands": _commands(facts),
        **(_NOT_EVALUATED if facts.headline is None else _evaluation(facts)),
        "computed": list(curve),
        "computed_chart": _curve_chart(curve, _OURS),
    }


_NOT_EVALUATED: Mapping[str, Any] = {
    **dict.fromkeys(("summary", "attack", "verdict", "curve_chart"), None),
    **dict.fromkeys(("threat", "strength", "attacks", "unharmed"), ""),
    **dict.fromkeys(("checks", "swatches", "evaluations", "curve", "classes", "fragile"), ()),
    **{key: {} for key in ("versus", "confusions", "grids")},
}
"""What a run that was only certified has in place of `_evaluation`."""


def _evaluation(facts: RunFacts) -> dict[str, Any]:
    """What the headline and the evaluations beside it say."""
    summary, outcomes, attack = facts.summary, facts.outcomes, facts.attack
    confusion = {"clean": Confusion.of(outcomes, "clean")} if outcomes else {}
    if outcomes and attack:
        confusion["attacked"] = Confusion.of(outcomes, attack)
    classes = per_class(summary, confusion.get("attacked"))
    points, learned = eps_curve(facts.evaluations, summary), facts.folder is not None
    return {
        "summary": summary,
        "attack": attack,
        "versus": {row["attack"]: row for row in versus_zero_shot(outcomes)},
        "verdict": words.verdict(summary),
        "checks": words.check_rows(summary),
        "threat": words.threat_words(summary),
        "strength": words.strength(summary),
        "attacks": words.attack_words(summary, learned) if attack else "",
        "swatches": words.swatches(summary),
        "evaluations": [one.summary for one in facts.evaluations],
        "curve": points,
        "curve_chart": _curve_chart(points, _OURS if learned else facts.name),
        "classes": classes,
        "fragile": fragile(classes),
        "unharmed": words.unharmed(classes),
        "confusions": {name: found.most() for name, found in confusion.items()},
        "grids": {name: _grid(found) for name, found in confusion.items() if len(found.class_names) <= GRID},
    }


def fragile(classes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The classes that keep the smallest share of their clean accuracy under attack; one without any has nothing to lose."""
    losing = [row for row in classes if row["worst"] < row["clean"]]
    return sorted(losing, key=lambda row: (row["worst"] / row["clean"], -row["clean"], row["class"]))[:FRAGILE]


def _about(facts: RunFacts) -> dict[str, Any]:
    if facts.folder is None:
        known = facts.classifier
        rows = {"classifier": known.get("classifier"), "kind": known.get("kind"), "data": facts.summary["data"]}
        versions = known.get("versions")
        return {**rows, "apd": versions.get("apd") if isinstance(versions, Mapping) else None}
    manifest, config = facts.run.manifest, facts.config
    rows = {
        "method": config.method.name,
        "CLIP model": manifest["model"]["source"],
        "data": manifest["data"].get("description") or manifest["data"]["name"],
        "shots": str(config.data.shots),
        "trained against": f"{config.train.norm} eps {config.train.eps}",
        "seed": str(config.train.seed),
        "apd": manifest["versions"]["apd"],
    }
    return rows


def _percent(point: Mapping[str, Any], who: str) -> str:
    low, high = point["interval"]
    return f"{who}: {point['accuracy']:.1f} % ({low:.1f} to {high:.1f})"


def _curve_chart(points: Sequence[Mapping[str, Any]], own_name: str) -> Chart | None:
    """Accuracy against eps, under a name for the classifier; None unless there are two eps besides 0."""
    if len(points) < 3:
        return None

    def line(name: str, style: str, found: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Line:
        return Line(
            name,
            style,
            [(point["eps"], own["accuracy"]) for point, own in found],
            [f"eps {point['eps_text']}, {_percent(own, name)}, {point['n']} images" for point, own in found],
            [tuple(own["interval"]) for _, own in found],
        )

    others = [(point, point["undefended"]) for point in points if point["undefended"] is not None]
    lines = [line(own_name, "own", [(point, point) for point in points])]
    lines += [line("zero-shot CLIP", "other", others)] if others else []
    first, last = points[0], points[-1]
    summary = f"From {first['accuracy']:.1f} % without an attack to {last['accuracy']:.1f} % at eps {last['eps_text']}."
    ticks = [(float(point["eps"]), str(point["eps_text"])) for point in points]
    return line_chart("Accuracy against eps", summary, lines, ("eps", "accuracy in %"), percent=True, x_ticks=ticks)


def _training(facts: RunFacts) -> dict[str, Any]:
    """Curves of loss and of validation accuracy, and what was noticed while training."""
    log = training_log(facts.run)
    loss, charts = series(log, "loss"), []
    if len(loss) > 1:
        line = Line("loss", "own", loss, [f"epoch {x:g}: loss {y:.4g}" for x, y in loss])
        summary = f"From {loss[0][1]:.3g} at epoch {loss[0][0]:g} to {loss[-1][1]:.3g} at epoch {loss[-1][0]:g}."
        charts.append(line_chart("Training loss", summary, [line], ("epoch", "loss")))
    lines = []
    for key, name, style in (("val_clean", "without an attack", "third"), ("val_robust", "under attack", "own")):
        found = series(log, key)
        labels = [f"epoch {x:g}, {name}: {y:.1f} %" for x, y in found]
        lines += [Line(name, style, found, labels)] if found else []
    if lines:
        summary = ", ".join(f"{line.name} {line.points[-1][1]:.1f} %" for line in lines) + " at the last validation."
        axes = ("epoch", "accuracy in %")
        charts.append(line_chart("Accuracy on validation images", summary, lines, axes, percent=True))
    rows = [line for line in log if "val_clean" in line or "val_robust" in line]
    warnings = [str(text) for text in facts.run.manifest["summary"].get("warnings") or []]
    return {
        "charts": charts,
        "rows": rows,
        "warnings": warnings,
        "attack": facts.config.train.validation_attack,
    }


def _grid(found: Confusion) -> dict[str, Any]:
    """The whole table of confusions, each count with its share of the row."""
    rows = []
    for name, counts in zip(found.class_names, found.counts, strict=True):
        total = sum(counts) or 1
        rows.append({"class": name, "cells": [{"n": n, "share": round(n / total, 3)} for n in counts]})
    return {"names": found.class_names, "rows": rows}


def _cost(facts: RunFacts) -> dict[str, Any]:
    """What training and the headline's evaluation took, and how small the result is."""
    rows = {} if facts.folder is None else _cost_of_training(facts)
    for name, score in facts.summary["attacks"].items() if facts.headline else ():
        rows[f"attack {name} on {facts.summary['n']} images"] = pretty_seconds(score["seconds"])
    return {name: value for name, value in rows.items() if value}


def _cost_of_training(facts: RunFacts) -> dict[str, str]:
    manifest = facts.run.manifest
    file = facts.run.path / "prompts.safetensors"
    tensors, _ = read_tensors(file, TRAIN_AGAIN)
    data = manifest["data"]
    return {
        "training": pretty_seconds(manifest["seconds"]) if "seconds" in manifest else "not recorded",
        "training images": str(data.get("train_images", "not recorded")),
        "unlabelled images": str(data["unlabelled_images"]) if data.get("unlabelled_images") else "",
        "optimiser steps": str(manifest["summary"].get("steps", "not recorded")),
        "learned numbers": f"{sum(tensor.numel() for tensor in tensors.values()):,}",
        "size of what is learned": f"{file.stat().st_size / 1000:,.1f} kB",
    }


def _commands(facts: RunFacts) -> list[str]:
    """The commands that repeat training, with the settings saved as config.yaml, and the evaluation or certification."""
    train = [] if facts.folder is None else ["apd train --config config.yaml --output runs/again"]
    if facts.headline is not None:
        return [*train, _evaluate_again(facts)]
    return [*train, *(one["command"] for one in certified_views(facts.run))]


def _evaluate_again(facts: RunFacts) -> str:
    summary, what = facts.summary, "runs/again" if facts.folder is not None else _classifier(facts)
    evaluate = [f"apd evaluate {what}", f"--attack {quoted(','.join(summary['attacks']) or 'clean')}"]
    exact = parse_eps(summary["eps_text"], summary["norm"]) == summary["eps"]
    evaluate += [f"--eps {summary['eps_text'] if exact else repr(summary['eps'])}"]
    evaluate += [f"--{name} {summary[name]}" for name in ("norm", "seed")]
    evaluate += [f"--{name} {summary[name]}" for name in ("split", "classes")]
    evaluate += [f"--limit {summary['n'] + len(summary['skipped_images'])}"]
    evaluate += ["--skip-bad-images"] if summary["skipped_images"] else []
    evaluate += [f"--corruption {summary['corruption']}"] if summary.get("corruption") else []
    evaluate += [] if facts.own_data else [f"--data {quoted(summary['data'])}"]
    return " ".join(evaluate)


def _classifier(facts: RunFacts) -> str:
    """The options that name a classifier that is not a run."""
    known = facts.classifier
    name, model = str(known.get("classifier")), known.get("model")
    source = quoted(str(model.get("source"))) if isinstance(model, Mapping) else ""
    if name.partition(":")[0] in FORMS and source:
        return f"--classifier {quoted(name)} --model {source}"
    if source:
        return f"--model {quoted(name)} --folder evaluations"
    return f"--classifier {quoted(name)} --image-size {facts.summary['image_size']}"
