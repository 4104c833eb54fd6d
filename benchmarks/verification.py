"""`python -m benchmarks.verification`: train and evaluate a run, forge it in every way, and write which finding noticed.

python -m benchmarks.verification --output docs/results/verification
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import apd
from apd.evaluation.findings import Verification
from apd.util.files import write_atomic
from apd.util.text import markdown
from benchmarks.forgeries import FORGERIES

COMMAND = "python -m benchmarks.verification"
ATTACK, EPS = "pgd-1", "14/255"
"""Too weak for a reliable result: to hide that is among the forgeries."""


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


def rows(place: Path, size: Size) -> list[dict[str, object]]:
    """The honest run three times on other images, then each forgery of it."""
    run = honest_run(place, size)
    found: list[dict[str, object]] = []
    for number in range(3):
        verdict = judged(run, Size(size.epochs, size.shots, size.images, size.samples, size.seed + number))
        (again,) = [
            each.message for each in verdict.findings if each.about == "again" and each.message.startswith(ATTACK)
        ]
        found.append({"run": f"honest, seed {size.seed + number}", **_row(verdict), "again": again})
    for kind, (forge, expected) in FORGERIES.items():
        copy = shutil.copytree(run, place / kind.replace(" ", "-") / "run")
        forge(copy)
        print(kind, flush=True)
        found.append({"run": kind, **_row(judged(copy, size)), "expected": expected})
        shutil.rmtree(copy.parent)
    return found


def _row(verdict: Verification) -> dict[str, object]:
    return {"verified": verdict.verified, "noticed_by": sorted({each.about for each in verdict.failed})}


def page(found: list[dict[str, object]], size: Size) -> str:
    """The rows as Markdown."""
    lines = [
        f"{COMMAND} --images {size.images} --samples {size.samples} --seed {size.seed}",
        "",
        "| run | verified | noticed by |",
    ]
    lines.append("|---|---|---|")
    for row in found:
        verified = "yes" if row["verified"] else "no"
        lines.append(f"| {markdown(str(row['run']))} | {verified} | {', '.join(row['noticed_by']) or '-'} |")  # type: ignore[arg-type]
    lines += ["", *(f"- {row['run']}: {row['again']}" for row in found if "again" in row)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("epochs", 3), ("shots", 4), ("images", 200), ("samples", 64), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output", type=Path, default=Path("docs/results/verification"))
    given = parser.parse_args()
    size = Size(given.epochs, given.shots, given.images, given.samples, given.seed)
    with tempfile.TemporaryDirectory() as folder:
        found = rows(Path(folder), size)
    write_atomic(
        given.output / "table.json", json.dumps({"command": COMMAND, **vars(size), "rows": found}, indent=1) + "\n"
    )
    write_atomic(given.output / "table.md", page(found, size))
    print(page(found, size), end="")


if __name__ == "__main__":
    main()
