"""Accuracy of zero-shot CLIP, the control and APD under other words for the classes, clean and under attack.

python -m benchmarks.wording --testbed ../shared/testbed

trains what is missing, and writes benchmarks/results/wording.json and the tables of docs/wording.md. An interrupted call is
continued.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apd
from apd.evaluation.inputs import of_run
from apd.evaluation.wording.result import UNDER, Wording
from apd.util.files import write_atomic
from benchmarks.figures import between_markers, table
from benchmarks.trained import APD, CONTROL, Setting, settings, trained

ZERO_SHOT = "zero-shot CLIP"
SYNONYMS = Path(__file__).parent / "synonyms"
CHANGES = ("typos", "edits", "synonyms", "templates")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wording", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--testbed", type=Path, help="folder of a real small CLIP with images; without it, digits only")
    parser.add_argument("--runs", type=Path, default=Path("runs/measured"), help="where runs and outcomes are kept")
    parser.add_argument("--limit", type=int, default=100, help="images per set")
    parser.add_argument("--variants", type=int, default=3, help="wordings per kind of typos and edits")
    parser.add_argument("--attack", default="pgd-10")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    a = parser.parse_args(argv)
    options: dict[str, Any] = {"limit": a.limit, "variants": a.variants, "attack": a.attack, "changes": CHANGES}
    found = {where.name: measured(where, a.runs, options) for where in settings(a.testbed)}
    record = {name: {model: one.to_dict() for model, one in models.items()} for name, models in found.items()}
    write_atomic(a.results / "wording.json", json.dumps(record, indent=1) + "\n")
    command = (
        f"python -m benchmarks.wording --testbed TESTBED --limit {a.limit} --variants {a.variants} --attack {a.attack}"
    )
    between_markers(a.docs / "wording.md", page(record, command))


def measured(where: Setting, runs: Path, options: dict[str, Any]) -> dict[str, Wording]:
    """Evaluate the three classifiers on the same images."""
    found = {}
    for name, recipe in ((ZERO_SHOT, APD), (CONTROL.name, CONTROL), (APD.name, APD)):
        inputs = of_run(trained(where, recipe, runs))
        model = inputs.classifier.zero_shot() if name == ZERO_SHOT else inputs.classifier
        synonyms = SYNONYMS / f"{where.name}.yaml"
        given = {**options, "eps": where.eps, "control": False, "synonyms": synonyms, "store": runs / "wordings"}
        found[name] = apd.evaluate_wording(model, inputs.data, **given)
        print(f"{where.name}, {name}\n{found[name]}", flush=True)
    return found


def page(record: dict[str, Any], command: str) -> str:
    """The section of docs/wording.md."""
    parts = [f"`{command}`, accuracy in percent as *mean / worst words / worst case*:"]
    for where, models in record.items():
        first = next(iter(models.values()))
        about = f"{first['n']} images, {first['attack']} at {first['norm']} eps {first['eps_text']}, distance {first['distance']}"
        parts.append(f"**{where}**, {about}")
        rows = [["original", "clean", *(f"{one['clean']['accuracy']:.1f}" for one in models.values())]]
        rows.append(["original", "attacked", *(f"{one['attacked']['accuracy']:.1f}" for one in models.values())])
        for kind, change in first["changes"].items():
            for images in UNDER:
                cells = [_cell(one["changes"][kind][images]) for one in models.values()]
                rows.append([f"{kind} ({len(change['variants'])})", images, *cells])
        parts.append(table(["words", "images", *models], rows))
    return "\n\n".join(parts)


def _cell(summary: dict[str, Any]) -> str:
    worst = summary["worst_words"]["accuracy"], summary["worst_case"]["accuracy"]
    return f"{summary['mean']:.1f} / {worst[0]:.1f} / {worst[1]:.1f}"


if __name__ == "__main__":
    main()
