"""The table of docs/results.md: zero-shot, the control and APD on a real small CLIP and real images.

    python -m recipes.testbed choose --testbed TESTBED        # eps on the validation split
    python -m recipes.testbed run    --testbed TESTBED        # train, attack, compare; resumable

The testbed is a folder with a CLIP (``clip/``), ``data/cifar10`` and ``data/caltech101``; it is not part of the project.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import apd
from recipes.study import Outcome, Row, Study, run_study, table

SEEDS = (0, 1, 2)
STRONG = ("apgd-ce", "apgd-dlr")
DATA = {"cifar10": "data/cifar10", "caltech101": "data/caltech101/split_zhou_Caltech101.json"}
# Per data set, for all methods alike: the smallest eps tried at which zero-shot CLIP keeps less than a third of its clean
# accuracy (``choose``), and the schedule at which the control does best on validation images. On caltech101 adversarial
# cross-entropy collapses to equal probabilities when trained at the eps of the evaluation; all methods train at a smaller one.
EPS = {"cifar10": "2/255", "caltech101": "1.75/255"}
TRAIN: dict[str, dict[str, Any]] = {
    "cifar10": {"epochs": 20, "optimizer": {"lr": 0.01}},
    "caltech101": {"epochs": 5, "optimizer": {"lr": 0.003}, "eps": "1.25/255"},
}
ROWS = (
    Row("zero-shot", None, (0,)),
    Row("control", {"name": "advvlp"}, SEEDS),
    Row("apd frozen", {"name": "apd", "teacher": "frozen"}, SEEDS),
    Row("apd tuned", {"name": "apd", "teacher": "tuned"}, SEEDS),
    Row("apd online", {"name": "apd", "teacher": "online"}, (0,)),
)


def study(testbed: Path, name: str) -> Study:
    """The study on one of the data sets."""
    return Study(
        name=name,
        model=str(testbed / "clip"),
        data=str(testbed / DATA[name]),
        eps=EPS[name],
        rows=ROWS,
        attacks=STRONG,
        limit=500,
        train={**TRAIN[name], "validate_every": TRAIN[name]["epochs"], "device": "cpu"},
    )


def choose(testbed: Path, names: Sequence[str], folder: Path) -> None:
    """Zero-shot accuracy on validation images, clean and attacked, over eps."""
    clip = apd.load_clip(str(testbed / "clip"))
    for name in names:
        for eps in ("1/255", "1.25/255", "1.5/255", "1.75/255", "2/255"):
            data = apd.load_data(str(testbed / DATA[name]), shots="all")
            classifier = apd.PromptedCLIP(clip, None, data.class_names, data.templates)
            result = apd.evaluate(
                classifier,
                data,
                store=folder / name / "choose",
                split="val",
                attacks=STRONG,
                eps=eps,
                limit=200,
                control=False,
                checks=False,
            )
            share = result.worst.accuracy / result.clean
            print(
                f"{name} eps {eps}: clean {result.clean}, worst {result.worst.accuracy} ({share:.2f} of clean), n {result.n}"
            )


def run(testbed: Path, names: Sequence[str], folder: Path, output: Path) -> None:
    """Both studies, AutoAttack on 100 images for the control and the APD of highest validation figures, and the tables."""
    for name in names:
        started, one = time.monotonic(), study(testbed, name)
        outcomes = run_study(one, folder, output / f"testbed-{name}.json", _say)
        best = max(
            (row for row in ROWS if row.label.startswith("apd")), key=lambda row: _validation(outcomes[row.label])
        )
        _say(
            f"\n{name}, eps {one.eps} at 32 px, best APD on validation: {best.label}\n\n{table(outcomes, 'control')}\n"
        )
        two = tuple(replace(row, seeds=(0,)) for row in ROWS if row.label in ("control", best.label))
        full = replace(one, rows=two, attacks=("autoattack",), limit=100)
        attacked = run_study(full, folder, output / f"testbed-{name}-autoattack.json", _say)
        _say(f"\nAutoAttack, 100 images, seed 0\n\n{table(attacked, 'control')}\n")
        _say(f"{name}: {(time.monotonic() - started) / 60:.0f} min\n")


def _say(line: str) -> None:
    print(line, flush=True)


def _validation(row: Mapping[int, Outcome]) -> float:
    """Mean of clean and attacked validation accuracy at the end of training, over the seeds that there are."""
    return statistics.mean(accuracy for outcome in row.values() for accuracy in outcome.validation.values())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("choose", "run"))
    parser.add_argument("--testbed", type=Path, required=True)
    parser.add_argument("--data", nargs="+", choices=tuple(DATA), default=tuple(DATA))
    parser.add_argument("--folder", type=Path, default=Path("runs/testbed"), help="where runs and outcomes are kept")
    parser.add_argument(
        "--output", type=Path, default=Path("docs/results"), help="where the JSON behind the tables goes"
    )
    arguments = parser.parse_args()
    if arguments.what == "choose":
        choose(arguments.testbed, arguments.data, arguments.folder)
    else:
        run(arguments.testbed, arguments.data, arguments.folder, arguments.output)


if __name__ == "__main__":
    main()
