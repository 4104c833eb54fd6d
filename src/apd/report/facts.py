"""What a report says of a run, read from its folder; no model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from apd.errors import InputError
from apd.evaluation.certified.stored import load_certified
from apd.evaluation.kept import read_record
from apd.evaluation.statistics import mcnemar, paired_bootstrap, wilson
from apd.evaluation.stored import Outcomes, Stored, how_to_evaluate, is_kept, stored_in
from apd.models.calibration import Calibration
from apd.runs.config import RunConfig
from apd.runs.folder import Run
from apd.runs.headline import of_own_data, weight
from apd.util.files import LARGEST_JSON, AnyPath, names_of, parse_json, read_bounded, refuse_twice, user_path
from apd.util.json_shape import Each, check_shape

POINTS = 300
"""Points of a training curve that are shown, at most."""
CONFUSIONS = 15
"""Pairs of classes that are confused most often and listed."""


@dataclass(frozen=True)
class RunFacts:
    """A run or a classifier of other code, its evaluations and the one that the report opens with.

    Args:
        name: what it is called on the page.
        path: the folder.
        folder: the run; None where the folder keeps evaluations of a classifier that is not a run.
        evaluations: all that the folder keeps.
        headline: the evaluation that the page is about; None where a run was certified only.
    """

    name: str
    path: Path
    folder: Run | None
    evaluations: Sequence[Stored]
    headline: Stored | None

    @property
    def run(self) -> Run:
        """The run, of which more is told than of other classifiers."""
        assert self.folder is not None
        return self.folder

    @cached_property
    def classifier(self) -> Mapping[str, Any]:
        """What was evaluated, where that is not a run."""
        return read_record(self.path) or {}

    @cached_property
    def config(self) -> RunConfig:
        """The settings of its training."""
        return self.run.config

    @property
    def summary(self) -> Mapping[str, Any]:
        """The headline's numbers."""
        assert self.headline is not None
        return self.headline.summary

    @property
    def outcomes(self) -> Outcomes | None:
        """What became of each image of the headline."""
        return None if self.headline is None else self.headline.outcomes

    @cached_property
    def attack(self) -> str | None:
        """The headline's strongest attack: the one under which fewest images are right; None without any."""
        scores = {} if self.headline is None else self.summary["attacks"]
        return min(scores, key=lambda name: (scores[name]["accuracy"], name)) if scores else None

    @cached_property
    def calibration(self) -> Calibration | None:
        """What makes the run's probabilities mean what they say; None where it was not measured."""
        return None if self.folder is None else self.folder.calibration

    @property
    def own_data(self) -> bool:
        """Whether the headline is about the data that the run was trained on."""
        return self.folder is not None and of_own_data(self.summary, self.folder.manifest)


def read_runs(paths: Sequence[AnyPath]) -> list[RunFacts]:
    """Read finished runs with evaluations, and folders that `apd evaluate --classifier` has written.

    Raises:
        InputError: no run, the same twice, an unfinished run, a run without an evaluation (several runs), or with neither an
            evaluation nor a certification (one).
    """
    if not paths:
        raise InputError("A report needs at least one run folder.")
    places = refuse_twice(paths)
    found = []
    for path, name in zip(paths, names_of(places), strict=True):
        run = None if is_kept(user_path(path)) else Run.open(path)
        evaluations = stored_in(path)
        certified_alone = run is not None and len(paths) == 1 and bool(load_certified(run))
        if not evaluations and not certified_alone:
            raise InputError(f"{path} has no evaluation to report; run: {how_to_evaluate(path)}")
        headline = choose_headline(run, evaluations) if evaluations else None
        found.append(RunFacts(name, user_path(path), run, evaluations, headline))
    return found


def choose_headline(run: Run | None, evaluations: Sequence[Stored]) -> Stored:
    """Choose the evaluation that a report opens with: the one that says most (`apd.runs.headline.weight`)."""
    manifest, train = (None, None) if run is None else (run.manifest, run.config.train)
    return max(evaluations, key=lambda stored: weight(stored.summary, manifest, train))


def versus_zero_shot(outcomes: Outcomes | None) -> list[dict[str, Any]]:
    """Paired differences to zero-shot CLIP on the same images: clean, and under the worst of the attacks."""
    if outcomes is None or outcomes.undefended is None:
        return []
    rows = []
    for attack in ["clean", "worst"] if len(outcomes.predictions) > 1 else ["clean"]:
        own, other = outcomes.right(attack), outcomes.right(attack, undefended=True)
        found = paired_bootstrap(own, other)
        interval = [round(found.low, 2), round(found.high, 2)]
        row = {"attack": attack, "difference": round(found.mean, 2), "interval": interval, "p": mcnemar(own, other)}
        rows.append({**row, "n": len(outcomes)})
    return rows


def eps_curve(evaluations: Sequence[Stored], about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accuracy against eps, from the evaluations that differ from ``about`` in eps and number of images only.

    Returns:
        Points in the order of eps, 0 (no attack) first; of evaluations at the same eps the one on most images counts.
    """
    keys = ("data", "split", "classes", "norm", "seed", "corruption")
    same = [
        one.summary
        for one in evaluations
        if all(one.summary.get(key) == about.get(key) for key in keys)
        and set(one.summary["attacks"]) == set(about["attacks"])
    ]
    best: dict[float, Mapping[str, Any]] = {}
    for one in same:
        if one["eps"] not in best or one["n"] > best[one["eps"]]["n"]:
            best[one["eps"]] = one
    points = [curve_point(best[eps]) for eps in sorted(best)]
    return [curve_point(about, clean=True), *points] if points and about["attacks"] else []


def curve_point(summary: Mapping[str, Any], clean: bool = False) -> dict[str, Any]:
    """A point of the curve: the worst case at the summary's eps, or no attack at all."""
    worst, other = summary["worst"], summary["undefended"]
    own = {"accuracy": summary["clean"], "interval": summary["clean_interval"]} if clean else worst
    control = None
    if other is not None:
        control = {"accuracy": other["clean"], "interval": other["clean_interval"]} if clean else other["worst"]
    return {
        "eps": 0.0 if clean else summary["eps"],
        "eps_text": "0" if clean else summary["eps_text"],
        "n": summary["n"],
        "accuracy": own["accuracy"],
        "interval": list(own["interval"]),
        "undefended": None
        if control is None
        else {"accuracy": control["accuracy"], "interval": list(control["interval"])},
    }


@dataclass(frozen=True)
class Confusion:
    """How often each class was taken for which.

    Args:
        class_names: in label order.
        counts: rows by right class, columns by predicted class.
    """

    class_names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...] = field(repr=False)

    @classmethod
    def of(cls, outcomes: Outcomes, attack: str) -> Confusion:
        """Count the predictions under ``clean`` or an attack."""
        size = len(outcomes.class_names)
        pairs = Counter(zip(outcomes.labels, outcomes.predictions[attack], strict=True))
        counts = tuple(tuple(pairs[row, column] for column in range(size)) for row in range(size))
        return cls(outcomes.class_names, counts)

    def most(self) -> list[dict[str, Any]]:
        """The pairs that are confused most often."""
        names = self.class_names
        wrong = [
            {"class": names[i], "taken_for": names[j], "times": count, "of": sum(row)}
            for i, row in enumerate(self.counts)
            for j, count in enumerate(row)
            if count and i != j
        ]
        return sorted(
            wrong, key=lambda entry: (-int(str(entry["times"])), str(entry["class"]), str(entry["taken_for"]))
        )[:CONFUSIONS]

    def taken_for(self, name: str) -> str | None:
        """The class that a class is most often mistaken for; None if it never is."""
        label = self.class_names.index(name)
        row = list(self.counts[label])
        row[label] = 0
        return self.class_names[row.index(max(row))] if max(row) else None


def per_class(summary: Mapping[str, Any], attacked: Confusion | None) -> list[dict[str, Any]]:
    """Accuracy of each class, clean and under the worst attack, with intervals, and what it is taken for."""
    rows = []
    for name, score in summary["per_class"].items():
        n = score["n"]
        low, high = wilson(round(score["worst"] * n / 100), n)
        rows.append(
            {
                "class": name,
                "n": n,
                "clean": score["clean"],
                "worst": score["worst"],
                "interval": [round(100 * low, 2), round(100 * high, 2)],
                "taken_for": attacked.taken_for(name) if attacked else None,
            }
        )
    return rows


def training_log(run: Run) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``.

    Raises:
        InputError: a damaged file.
    """
    file = run.path / "metrics.jsonl"
    if not file.is_file():
        return []
    way_out = "remove it to see the report without curves"
    lines = read_bounded(file, way_out, LARGEST_JSON).splitlines()
    rows = [parse_json(line, file, way_out) for line in lines]
    check_shape(rows, Each({}), file, way_out)
    return rows


def series(log: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Epoch and value of one number of the log; of many points every k-th, and always the last."""
    found = [
        (float(line["epoch"]), float(line[name])) for line in log if line.get(name) is not None and "epoch" in line
    ]
    step = -(-len(found) // POINTS) if found else 1
    return found if step == 1 else [*found[::step][: POINTS - 1], found[-1]]
