"""`python -m benchmarks.verification`: train and evaluate a run, forge it in every way, and write which finding noticed.

python -m benchmarks.verification --output docs/results/verification

Rows are kept; a second call measures what is missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apd
from apd.evaluation.findings import Verification
from apd.util.files import write_atomic
from apd.util.text import markdown
from benchmarks.forgeries import FORGERIES

COMMAND = "python -m benchmarks.verification"
ATTACK, EPS = "pgd-1", "14/255"
"""Too weak for a reliable result: to hide that is among the forgeries."""
HONEST = 3
"""Verifications of the run before anything is forged, each on other images."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How large the run, its evaluation and its verification are."""

    epochs: int
    shots: int
    images: int
    samples: int
    seed: int


def honest_run(place: Path, size: Size) -> Path:
    """Train on digits and evaluate; what a stranger would hand out."""
    data = apd.load_data("digits", shots=size.shots, seed=0)
    run = apd.train(apd.load_clip("glyphs"), data, epochs=size.epochs, output=place / "run", quiet=True, eps=EPS)
    apd.evaluate_run(run.path, attacks=ATTACK, limit=size.images, save_images=True, quiet=True)
    return run.path


def judged(run: Path, size: Size) -> Verification:
    return apd.verify_run(run, samples=size.samples, seed=size.seed, quiet=True)


def rows(place: Path, size: Size, kept: Sequence[Row] = ()) -> Iterator[Row]:
    """Yield the honest run three times on other images, then each forgery of it, but those that were kept."""
    run, known = honest_run(place, size), {row["run"] for row in kept}
    for number in range(HONEST):
        name = f"honest, seed {size.seed + number}"
        if name not in known:
            verdict = judged(run, replace(size, seed=size.seed + number))
            (again,) = [
                each.message for each in verdict.findings if each.about == "again" and each.message.startswith(ATTACK)
            ]
            yield {"run": name, **_row(verdict), "again": again}
    for kind, (forge, expected) in FORGERIES.items():
        if kind not in known:
            copy = shutil.copytree(run, place / kind.replace(" ", "-") / "run")
            forge(copy)
            yield {"run": kind, **_row(judged(copy, size)), "expected": expected}
            shutil.rmtree(copy.parent)


def _row(verdict: Verification) -> Row:
    return {"verified": verdict.verified, "noticed_by": sorted({each.about for each in verdict.failed})}


def page(found: Sequence[Row], size: Size) -> str:
    """The rows as Markdown."""
    lines = [
        f"{COMMAND} --images {size.images} --samples {size.samples} --seed {size.seed}",
        "",
        "| run | verified | noticed by |",
    ]
    lines.append("|---|---|---|")
    for row in found:
        verified = "yes" if row["verified"] else "no"
        lines.append(f"| {markdown(str(row['run']))} | {verified} | {', '.join(row['noticed_by']) or '-'} |")
    lines += ["", *(f"- {row['run']}: {row['again']}" for row in found if "again" in row)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("epochs", 3), ("shots", 4), ("images", 200), ("samples", 64), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output", type=Path, default=Path("docs/results/verification"))
    given = parser.parse_args()
    size = Size(given.epochs, given.shots, given.images, given.samples, given.seed)
    found = measure(given.output / "table.json", size)
    write_atomic(given.output / "table.md", page(found, size))
    print(page(found, size), end="")


def measure(file: Path, size: Size) -> list[Row]:
    """Measure what the file does not hold yet; each row is kept as soon as it is known."""
    about = {"command": COMMAND, "attack": ATTACK, "eps": EPS, **vars(size)}
    record = json.loads(file.read_text()) if file.exists() else {}
    found: list[Row] = record["rows"] if all(record.get(key) == value for key, value in about.items()) else []
    order = [*(f"honest, seed {size.seed + number}" for number in range(HONEST)), *FORGERIES]
    if {row["run"] for row in found} < set(order):
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(Path(folder), size, found):
                found = sorted([*found, row], key=lambda each: order.index(each["run"]))
                write_atomic(file, json.dumps({**about, "rows": found}, indent=1) + "\n")
                print(row, flush=True)
    return found


if __name__ == "__main__":
    main()
