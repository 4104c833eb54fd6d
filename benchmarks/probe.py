"""What the teachers that can be fitted on few images know: accuracy and cross-entropy on training images that are no shots.

python -m benchmarks.probe --testbed ../shared/testbed

writes benchmarks/results/probe.json and the table of docs/method.md. No test image is used. Tuned prompts cost a clean training
each, which is kept in --runs; the rest takes two minutes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import apd
from apd.data import Dataset, ImageSet
from apd.methods import probe
from apd.methods.teachers import choose, mean_logits, per_image
from apd.models import DualEncoder
from apd.models.classifier import PromptedCLIP
from apd.util.files import write_atomic
from benchmarks.figures import between_markers, table

PENALTIES = (0.03, 0.1, 0.3, 1.0)
SHOTS = (1, 2, 4, 8, 16)
SETS = {
    "cifar10": ("data/cifar10", 0.01),
    "eurosat": ("data/eurosat", 0.01),
    "dtd10": ("data/dtd10", 0.01),
    "caltech101": ("data/caltech101/split_zhou_Caltech101.json", 0.003),
}
"""Source below the testbed, and learning rate of tuned prompts (suites/testbed.yaml)."""
TUNED, CHOSEN, BEST = "tuned prompts", "teacher=probe", "teacher=best"
LIMIT = 2000
"""Left-over images, at most, that a teacher is judged on."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--testbed", type=Path, required=True, help="folder of a real small CLIP with images")
    parser.add_argument("--runs", type=Path, default=Path("runs/probe"), help="where tuned prompts are kept")
    parser.add_argument(
        "--tuned", type=int, nargs="*", default=[1, 4, 16], help="shots for which prompts are tuned, too"
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    a = parser.parse_args(argv)
    clip, record = apd.load_clip(str(a.testbed / "clip")), {}
    for name, (source, rate) in SETS.items():
        for shots in SHOTS:
            data = apd.load_data(a.testbed / source, shots=shots)
            prompts = tuned(clip, data, rate, a.runs / f"{name}-{shots}") if shots in a.tuned else None
            record[f"{name}, {shots}"] = measured(clip, data, prompts)
            print(f"{name}, {shots} shots: {record[f'{name}, {shots}']}", flush=True)
    write_atomic(a.results / "probe.json", json.dumps(record, indent=1) + "\n")
    between_markers(a.docs / "method.md", page(record))


def tuned(clip: DualEncoder, data: Dataset, rate: float, output: Path) -> PromptedCLIP:
    """Prompts tuned on the shots as those of a teacher are in the few-shot suite: 220 steps, clean, in bf16."""
    if not (output / "run.json").exists():
        training: dict[str, Any] = {
            "steps": 220,
            "validate_every": 1000,
            "precision": "bf16",
            "optimizer": {"lr": rate},
        }
        apd.train(clip, data, method="vlp", output=output, overwrite=True, quiet=True, **training)
    return apd.load_run(output)


def left_over(data: Dataset) -> ImageSet:
    """Training images that are neither shots nor validation images, with their labels."""
    everything = apd.load_data(data.source, shots="all").train
    used = {*data.train.ids, *data.val.ids}
    rest = [i for i, id_ in enumerate(everything.ids) if id_ not in used]
    drawn = torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))[:LIMIT].tolist()
    return everything.select([rest[i] for i in drawn])


def measured(clip: DualEncoder, data: Dataset, prompts: PromptedCLIP | None) -> dict[str, Any]:
    """Accuracy in percent and cross-entropy of every teacher."""
    bound = PromptedCLIP(clip, None, data.class_names, data.templates).bind_detached()
    parts = [part.decode(clip.info.preprocessing) for part in (data.train, data.val, left_over(data))]
    train, val, rest = (per_image(bound.features, part) for part in parts)
    labels, known = parts[2].labels, bound.logits_from_features(rest)
    found: dict[str, Any] = {"images": len(labels), "zero-shot": judged(known, labels)}
    for penalty in PENALTIES:
        weights = probe.fit_probe(train, parts[0].labels, len(data.class_names), penalty)
        found[f"probe, {penalty:g}"] = judged(probe.probe_logits(rest, weights), labels)
    weights = probe.fit_probe(train, parts[0].labels, len(data.class_names))
    teachers = {"zero-shot": (bound.logits_from_features(val), known)}
    teachers["probe"] = probe.probe_logits(val, weights), probe.probe_logits(rest, weights)
    found[CHOSEN] = chosen(teachers, parts[1].labels, labels)
    if prompts is not None:
        own = prompts.bind_detached().logits
        teachers["tuned"] = per_image(own, parts[1]), per_image(own, parts[2])
        found[TUNED] = judged(teachers["tuned"][1], labels)
        found[BEST] = chosen(teachers, parts[1].labels, labels)
    return found


def chosen(teachers: Mapping[str, tuple[Tensor, Tensor]], val: Tensor, labels: Tensor) -> list[Any]:
    """What those of the teachers know that validation images speak for, and their names.

    Args:
        teachers: each one's logits on validation images and on those it is judged on.
        val: labels of the validation images.
        labels: of the others.
    """
    shares, _ = choose([each for each, _ in teachers.values()], val)
    mean = mean_logits([each for _, each in teachers.values()], torch.tensor(shares))
    names = " + ".join(name for name, share in zip(teachers, shares, strict=True) if share)
    return [*judged(mean, labels), names]


def judged(logits: Tensor, labels: Tensor) -> list[float]:
    """Accuracy in percent, and cross-entropy."""
    right = 100 * float((logits.argmax(dim=-1) == labels).float().mean())
    return [round(right, 1), round(float(F.cross_entropy(logits, labels)), 2)]


def page(record: dict[str, Any]) -> str:
    """The table of docs/method.md."""
    columns = ["zero-shot", TUNED, *(f"probe, {penalty:g}" for penalty in PENALTIES), CHOSEN, BEST]
    rows = []
    for where, found in record.items():
        cells = ["-" if name not in found else "{:.1f} / {:.2f}".format(*found[name]) for name in columns]
        cells[-2:] = [
            f"{cell} ({found[name][2]})" if name in found else cell
            for name, cell in zip((CHOSEN, BEST), cells[-2:], strict=True)
        ]
        rows.append([where, str(found["images"]), *cells])
    head = ["data, shots", "images", *(name.replace("probe, ", "probe, penalty ") for name in columns)]
    about = "`python -m benchmarks.probe --testbed TESTBED`, accuracy in percent / cross-entropy, one draw of shots:"
    return f"{about}\n\n{table(head, rows)}"


if __name__ == "__main__":
    main()
