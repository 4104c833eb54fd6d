"""``strong`` beside the library's own AutoAttack on the same images: what each leaves standing, and what it costs.

python -m benchmarks.strong --testbed ../shared/testbed --images 500

The classifiers are short APD trainings, on the built-in digits and on the testbed's CIFAR-10; the reference is
`pyautoattack`, version ``standard``, called by its own interface. A third model has a planted weakness.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

import apd
from apd import attacks
from apd.attacks.threat import Norm, ThreatModel, format_eps
from apd.util.versions import versions
from benchmarks.planted import rare_class

EPS: dict[str, dict[Norm, float]] = {
    "digits": {"linf": 12 / 255, "l2": 1.2},
    "cifar10": {"linf": 3 / 255, "l2": 0.35},
}
"""Such that some images in a hundred stand: at larger budgets everything falls to the first attack, and nothing is compared."""
PLANTED = "planted"
RESULTS = Path("benchmarks/results/strong.json")
Row = dict[str, Any]


class Passes(nn.Module):
    """Counts images through a model; one with a gradient counts twice."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.count = model, 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the model's logits."""
        self.count += len(x) * (2 if x.requires_grad and torch.is_grad_enabled() else 1)
        z: Tensor = self.model(x)
        return z


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is asked for, keep it as JSON, and print it as a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strong", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--testbed", type=Path, help="folder of a real small CLIP with images; without it, no cifar10")
    parser.add_argument("--images", type=int, default=500, help="test images per set; those that are wrong count too")
    parser.add_argument("--sets", nargs="+", choices=(PLANTED, *EPS), default=[PLANTED, *EPS])
    parser.add_argument("--norms", nargs="+", choices=("linf", "l2"), default=("linf", "l2"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="only print the table of what was measured")
    asked = parser.parse_args(argv)
    kept = json.loads(asked.results.read_text()) if asked.results.exists() else {"rows": []}
    if not asked.page:
        for row in measured(asked):
            others = [old for old in kept["rows"] if (old["model"], old["norm"]) != (row["model"], row["norm"])]
            kept = {"versions": versions(), "rows": [*others, row]}
            asked.results.write_text(json.dumps(kept, indent=1) + "\n")
    print(table(kept["rows"]))


def measured(asked: argparse.Namespace) -> Iterator[Row]:
    """Measure row by row, the planted weakness first."""
    if PLANTED in asked.sets:
        model, x, labels, eps = rare_class(asked.images)
        yield compared("a rare class (planted)", model, x, labels, ThreatModel(eps))
    for name in asked.sets:
        if name == PLANTED or (name == "cifar10" and asked.testbed is None):
            continue
        with trained(name, asked.testbed, asked.images, asked.device) as (classifier, images, truth):
            for norm in asked.norms:
                yield compared(name, classifier, images, truth, ThreatModel(EPS[name][norm], norm))


@contextmanager
def trained(name: str, testbed: Path | None, n: int, device: str) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """Train APD for a few epochs on four images per class, and yield the classifier with test images and labels."""
    place = name if testbed is None or name == "digits" else testbed / "data" / name
    clip = apd.load_clip("glyphs" if name == "digits" else str(testbed / "clip"), device=device)  # type: ignore[operator]
    data = apd.load_data(place, shots=4)
    with tempfile.TemporaryDirectory() as folder:
        run = apd.train(clip, data, epochs=3, eps=repr(EPS[name]["linf"]), output=Path(folder) / "run")
        classifier = apd.load_run(run.path, device=device).frozen().requires_grad_(False)
        test = data.test.sample(n, 0).decode(clip.info.preprocessing)
        yield classifier, test.images.float().to(device) / 255, test.labels.to(device)


def compared(name: str, model: nn.Module, x: Tensor, labels: Tensor, threat: ThreatModel) -> Row:
    """Attack the same images with both, in one batch each, from the same seed."""

    def reference(counted: nn.Module) -> Tensor:
        norm: Any = {"linf": "Linf", "l2": "L2"}[threat.norm]
        library = AutoAttack(counted, norm=norm, eps=threat.eps, seed=0, version="standard", device=x.device)
        images, _ = library.run_standard_evaluation(x, labels, batch_size=len(x))
        return threat.project(images, x)

    def ours(counted: nn.Module) -> Tensor:
        right = (model(x).argmax(dim=1) == labels).nonzero().flatten()
        batch = attacks.AttackBatch(x, labels, [str(i) for i in range(len(x))]).select(right)
        found = attacks.find("strong")(counted, batch, threat)
        fooled = attacks.misclassified(model(found.images), batch.labels).tolist()
        by.extend(part for part, fell in zip(found.by, fooled, strict=True) if fell)
        return x.index_copy(0, right, found.images)

    by: list[str] = []
    row: Row = {"model": name, "norm": threat.norm, "eps": threat.eps, "images": len(x)}
    row["clean"] = int((model(x).argmax(dim=1) == labels).sum())
    for kind, attack in {"pyautoattack": reference, "strong": ours}.items():
        row[kind] = _told(attack, model, x, labels)
    row["strong"]["by"] = {part: by.count(part) for part in dict.fromkeys(by)}
    right = {kind: torch.tensor(row[kind].pop("right")) for kind in ("pyautoattack", "strong")}
    row["left by strong alone"] = int((right["strong"] & ~right["pyautoattack"]).sum())
    return row


def _told(attack: Callable[[nn.Module], Tensor], model: nn.Module, x: Tensor, labels: Tensor) -> Row:
    counted, started = Passes(model), time.perf_counter()
    images = attack(counted)
    seconds = time.perf_counter() - started
    right = model(images).argmax(dim=1) == labels
    return {"robust": int(right.sum()), "passes": counted.count, "seconds": round(seconds, 1), "right": right.tolist()}


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| model | norm, eps | images | clean | `pyautoattack` standard | `strong` | left by `strong` alone "
        "| passes, times AutoAttack's |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        share = {kind: f"{100 * row[kind]['robust'] / row['images']:.1f} %" for kind in ("pyautoattack", "strong")}
        cost = row["strong"]["passes"] / row["pyautoattack"]["passes"]
        lines.append(
            f"| {row['model']} | {row['norm']}, {format_eps(row['eps'], row['norm'])} | {row['images']} | "
            f"{100 * row['clean'] / row['images']:.1f} % | {share['pyautoattack']} | {share['strong']} | "
            f"{row['left by strong alone']} | {cost:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
