"""The demo over five seeds: zero-shot, the control and APD on the embedded digits, with paired intervals.

    python -m recipes.digits --folder runs/digits

Settings are the demo's own (`apd.demo.DEMO`). Rows that are in the output already are not computed again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from apd.demo import DEMO, METHODS
from recipes.study import Row, Study, run_study, table

SEEDS = (0, 1, 2, 3, 4)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/digits"), help="where runs and outcomes are kept")
    parser.add_argument(
        "--output", type=Path, default=Path("docs/results"), help="where the JSON behind the table goes"
    )
    arguments = parser.parse_args()
    rows = [Row("zero-shot", None, (0,)), *(Row(label, method, SEEDS) for label, method in METHODS.items())]
    study = Study(
        name="demo",
        model=DEMO.model,
        data=DEMO.data,
        eps=DEMO.eps,
        rows=tuple(rows),
        attacks=DEMO.attacks,
        limit=DEMO.limit,
        shots=DEMO.shots,
        train={"epochs": DEMO.epochs, "device": "cpu"},
    )
    started = time.monotonic()
    # Clean accuracy on all held-out images is cheap; AutoAttack is not, and gets the demo's few.
    everything = replace(study, attacks=("clean",), limit=None)
    for title, one in (("attacked", study), ("all", everything)):
        file = arguments.output / f"demo-seeds-{title}.json"
        outcomes = run_study(one, arguments.folder, file, lambda line: print(line, flush=True))
        n = len(outcomes["control"][0].right["clean"])
        print(f"\neps {DEMO.eps} at 32 px, {n} held-out images\n\n{table(outcomes, 'control')}\n", flush=True)
    print(f"{(time.monotonic() - started) / 60:.0f} min")


if __name__ == "__main__":
    main()
