"""Certified accuracy of zero-shot CLIP, APD and APD under noise, and what an attack on the smoothed classifier leaves.

python -m benchmarks.certified --testbed ../shared/testbed

trains what is missing, certifies it, and writes benchmarks/results/certified.json, the picture and the tables of
docs/certified.md. An interrupted call is continued.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apd
from apd.evaluation.certified.result import Certified
from apd.evaluation.inputs import of_run
from apd.util.files import write_atomic
from benchmarks.figures import between_markers, table
from benchmarks.trained import APD, NOISE, Recipe, Setting, settings, trained

ZERO_SHOT = "zero-shot CLIP"
COLOURS = {ZERO_SHOT: "#888888", APD.name: "#3f51b5", NOISE.name: "#e65100"}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.certified", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--testbed", type=Path, help="folder of a real small CLIP with images; without it, digits only")
    parser.add_argument("--runs", type=Path, default=Path("runs/measured"), help="where runs and votes are kept")
    parser.add_argument("--limit", type=int, default=30, help="images per set")
    parser.add_argument("--n0", type=int, default=20)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    a = parser.parse_args(argv)
    found = {where.name: measured(where, a.runs, a.limit, a.n0, a.n) for where in settings(a.testbed)}
    record = {name: {model: one.to_dict() for model, one in models.items()} for name, models in found.items()}
    write_atomic(a.results / "certified.json", json.dumps(record, indent=1) + "\n")
    draw(record, a.docs / "benchmarks" / "certified.svg")
    command = f"python -m benchmarks.certified --testbed TESTBED --limit {a.limit} --n0 {a.n0} --n {a.n}"
    between_markers(a.docs / "certified.md", page(record, command))


def measured(where: Setting, runs: Path, limit: int, n0: int, n: int) -> dict[str, Certified]:
    """Certify the three classifiers on the same images under the same noise, and attack them."""
    found: dict[str, Certified] = {}
    recipes: list[tuple[str, Recipe]] = [(ZERO_SHOT, APD), (APD.name, APD), (NOISE.name, NOISE)]
    for name, recipe in recipes:
        inputs = of_run(trained(where, recipe, runs))
        model = inputs.classifier.zero_shot() if name == ZERO_SHOT else inputs.classifier
        found[name] = apd.certify(
            model,
            inputs.data,
            store=runs / "votes",
            sigma=where.sigma,
            n0=n0,
            n=n,
            limit=limit,
            attack=True,
            control=False,
        )
        print(f"{where.name}, {name}\n{found[name]}", flush=True)
    return found


def page(record: dict[str, Any], command: str) -> str:
    """The section of docs/certified.md."""
    parts = [f"`{command}`, accuracy in percent as *certified / under attack*:"]
    gaps, contradictions = [], 0
    for where, models in record.items():
        first = next(iter(models.values()))
        size = f"{first['n_images']} images at {first['image_size']} px"
        parts.append(f"**{where}**, {size}, sigma {first['sigma']:g}, {first['n0']} + {first['n']} draws per image")
        rows = []
        for place, point in enumerate(first["curve"]):
            cells = [f"{point['radius']:.3g}"]
            for one in models.values():
                own = one["curve"][place]
                gaps.append(own["attacked"]["accuracy"] - own["accuracy"])
                cells.append(f"{own['accuracy']:.1f} / {own['attacked']['accuracy']:.1f}")
            rows.append(cells)
        rows.append(["mean radius", *(f"{one['mean_radius']:.3f}" for one in models.values())])
        contradictions += sum(one["contradictions"] for one in models.values())
        parts.append(table(["L2 radius", *models], rows))
    below = sum(gap < 0 for gap in gaps)
    parts.append(
        f"In {below} of {len(gaps)} cells is the accuracy under attack below the certified one, and {contradictions} images were "
        "fooled within their certified radius."
    )
    parts.append("![Certified accuracy against radius](benchmarks/certified.svg)")
    return "\n\n".join(parts)


def draw(record: dict[str, Any], file: Path) -> None:
    """Curves of certified accuracy as steps, and accuracy under attack as points."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "apd"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(record), figsize=(5 * len(record), 3.6), squeeze=False, sharey=True)
    for axis, (where, models) in zip(axes[0], record.items(), strict=True):
        for name, one in models.items():
            radii = sorted(image["radius"] for image in one["images"] if image["predicted"] == image["label"])
            shares = [100 * (len(radii) - place) / len(one["images"]) for place in range(len(radii))]
            last = [0.0] if radii else []
            axis.step([0.0, *radii][: len(radii) + 1], [*shares, *last], where="post", color=COLOURS[name], label=name)
            points = [(point["radius"], point["attacked"]["accuracy"]) for point in one["curve"]]
            axis.plot(*zip(*points, strict=True), "o", color=COLOURS[name], markersize=4)
        axis.set(title=where, xlabel="L2 radius (points: under attack)", ylim=(0, 100), xlim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("certified accuracy in %")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
