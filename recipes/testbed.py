"""The table of docs/results.md: zero-shot, the control and APD on a real small CLIP and real images.

    python -m recipes.testbed choose --testbed TESTBED        # eps on the validation split
    python -m recipes.testbed run    --testbed TESTBED        # train, attack, compare; resumable

The testbed is a folder with a CLIP (``clip/``), ``data/cifar10`` and ``data/caltech101``; it is not part of the project.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import apd
from apd.evaluation import Result
from recipes.study import Outcome, Row, Study, attack, run_study, save, table

SEEDS = (0, 1, 2)
STRONG = ("apgd-ce", "apgd-dlr")
DATA = {"cifar10": "data/cifar10", "caltech101": "data/caltech101/split_zhou_Caltech101.json"}
# Per data set, for all methods alike: the smallest eps tried at which zero-shot CLIP keeps less than a third of its clean
# accuracy (``choose``), and the learning rate at which the control does best on validation images.
EPS = {"cifar10": "2/255", "caltech101": "1.25/255"}
TRAIN: dict[str, dict[str, Any]] = {
    "cifar10": {"epochs": 20, "optimizer": {"lr": 0.01}},
    "caltech101": {"epochs": 5, "optimizer": {"lr": 0.003}},
}
ROWS = (
    Row("zero-shot", None, (0,)),
    Row("control", {"name": "advvlp"}, SEEDS),
    Row("apd tuned", {"name": "apd", "teacher": "tuned"}, SEEDS),
    Row("apd frozen", {"name": "apd", "teacher": "frozen"}, SEEDS),
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
        for eps in ("1/255", "1.25/255", "1.5/255", "2/255"):
            one = replace(study(testbed, name), eps=eps)
            data = apd.load_data(one.data, shots="all")
            classifier = apd.PromptedCLIP(clip, None, data.class_names, data.templates)
            result = attack(one, classifier, data, folder / name / "choose", split="val", limit=200)
            share = result.worst.accuracy / result.clean
            print(
                f"{name} eps {eps}: clean {result.clean}, worst {result.worst.accuracy} ({share:.2f} of clean), n {result.n}"
            )


def run(testbed: Path, names: Sequence[str], folder: Path, output: Path) -> None:
    """Both studies, AutoAttack on 100 images for the control and the APD of highest validation figures, and the tables."""
    for name in names:
        started, one = time.monotonic(), study(testbed, name)
        outcomes = run_study(one, folder, lambda line: print(line, flush=True))
        best = max(
            (row.label for row in ROWS if row.label.startswith("apd")),
            key=lambda label: _validation(folder / name, label),
        )
        columns = ("clean", *STRONG, "worst")
        save(outcomes, columns, output / f"testbed-{name}.json")
        print(
            f"\n{name}, eps {one.eps} at 32 px, best APD on validation: {best}\n\n{table(outcomes, columns, 'control')}\n",
            flush=True,
        )
        full = {label: _autoattack(one, folder, label) for label in ("control", best)}
        save(full, ("clean", "autoattack"), output / f"testbed-{name}-autoattack.json")
        print(f"AutoAttack, 100 images, seed 0\n\n{table(full, ('clean', 'autoattack'), 'control')}\n", flush=True)
        print(f"{name}: {(time.monotonic() - started) / 60:.0f} min\n", flush=True)


def _validation(folder: Path, label: str) -> float:
    """Mean of clean and attacked validation accuracy at the end of training, over the seeds that there are."""
    summaries = [
        apd.Run.open(path / "run").manifest["summary"] for path in sorted(folder.glob(f"{label.replace(' ', '-')}-*"))
    ]
    return sum(s["val_clean"] + s["val_robust"] for s in summaries) / (2 * len(summaries))


def _autoattack(one: Study, folder: Path, label: str) -> Outcome:
    place = folder / one.name / f"{label.replace(' ', '-')}-0"
    data = apd.load_data(one.data, shots=one.shots, seed=0)
    result: Result = attack(one, apd.load_run(place / "run"), data, place, attacks=("autoattack",), limit=100)
    return {0: result}


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
