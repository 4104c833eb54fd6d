"""Train the control and APD on the built-in data, attack them and zero-shot CLIP, and compare."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from apd.attacks import ThreatModel
from apd.attacks.threat import parse_eps
from apd.data import Dataset, load_data
from apd.demo.picture import draw
from apd.errors import InputError
from apd.evaluation import Result, evaluate
from apd.evaluation.examples import attacked
from apd.evaluation.statistics import paired_bootstrap
from apd.evaluation.stored import save
from apd.models import DualEncoder, load_clip
from apd.models.classifier import PromptedCLIP
from apd.runs.load import load_run
from apd.training.start import train
from apd.util.files import check_writable, write_atomic
from apd.util.locks import FolderLock, tidy
from apd.util.messages import get_logger, speaking
from apd.util.progress import pretty_seconds

log = get_logger("apd.demo")

ZERO_SHOT, CONTROL, SHOWN = "zero-shot", "control", 8
"""Labels of two rows, and how many digits the picture shows."""


@dataclass(frozen=True)
class Row:
    """A trained row of the table: the method, and settings of data and training for it alone."""

    method: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)


METHODS: dict[str, Row] = {
    CONTROL: Row({"name": "advvlp"}),
    "apd": Row({"name": "apd"}),
    "apd+unlabelled": Row({"name": "apd"}, {"unlabelled": "rest"}, {"epochs": 10}),
}
"""Row labels and what is trained for them: as many optimiser steps (220) in every row, for more steps help every method."""


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does.

    Args:
        model: the CLIP.
        data: the data set.
        shots: labelled training images per class.
        seed: of everything.
        eps: in [0,1] pixel units.
        epochs: passes over the training images.
        limit: attacked images under ``attacks``.
        attacks: these see ``limit`` images.
        few: attacked images under ``strongest``; 0: leave it out.
        strongest: an attack that costs more than all others.
    """

    model: str = "glyphs"
    data: str = "digits"
    shots: int = 1
    seed: int = 0
    eps: str = "14/255"
    epochs: int = 220
    limit: int = 300
    attacks: tuple[str, ...] = ("apgd-ce+dlr",)
    few: int = 0
    strongest: str = "autoattack"


DEMO = DemoSettings()
QUICK = replace(DEMO, epochs=1, limit=16)
_MARK = "demo.json"


def run_demo(output: Path, settings: DemoSettings = DEMO) -> dict[str, Any]:
    """Train and evaluate; leaves ``summary.json``, ``report.png`` and a run folder for each method in ``output``.

    Args:
        output: new or empty folder, or that of an earlier demo, whose runs are replaced.
        settings: what to do.

    Returns:
        ``{"eps": text, "rows": [{"method", "clean", attack: accuracy in percent, …}], "differences": …}``; differences
        are to the control, in points, with paired 95 % intervals over images.

    Raises:
        InputError: other files in ``output``, a place that cannot be written, another demo at work in it.
    """
    _check_folder(output)
    with FolderLock(output).held(), speaking():
        tidy(output)
        write_atomic(output / _MARK, json.dumps(asdict(settings), indent=2) + "\n")
        clip = load_clip(settings.model)
        data = load_data(settings.data, shots=settings.shots, seed=settings.seed)
        log.info(
            f"{clip.info.source} CLIP on {data.name}: {len(data.train)} labelled images of {len(data.class_names)} "
            f"classes, eps {settings.eps} at {clip.info.image_size} px; "
            f"about {pretty_seconds(_expected_seconds(clip, data, settings))}"
        )
        rows, results = _compare(output, clip, data, settings)
        write_atomic(output / "report.png", _picture(output, clip, data, settings))
        others = {name: result for name, result in results.items() if name != CONTROL}
        differences = {name: _differences(result, results[CONTROL]) for name, result in others.items()}
        summary = {"eps": settings.eps, "rows": rows, "differences": differences, "settings": asdict(settings)}
        write_atomic(output / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _compare(
    output: Path, clip: DualEncoder, data: Dataset, settings: DemoSettings
) -> tuple[list[dict[str, Any]], dict[str, list[Result]]]:
    """The rows of the table, zero-shot CLIP first, and the results they show."""
    log.info("attacking zero-shot CLIP")
    classifier = PromptedCLIP(clip, None, data.class_names, data.templates)
    results = {ZERO_SHOT: _measure(classifier, data, settings, output / ZERO_SHOT)}
    for label, row in METHODS.items():
        own = load_data(settings.data, shots=settings.shots, seed=settings.seed, **row.data)
        log.info(f"training {label}")
        epochs = _epochs(row, settings)
        run = train(
            clip,
            own,
            method=row.method,
            eps=settings.eps,
            output=output / label,
            overwrite=True,
            seed=settings.seed,
            device="cpu",
            **{**row.train, "epochs": epochs, "validate_every": max(1, epochs // 4)},
        )
        log.info(f"attacking {label}")
        with run.held():
            results[label] = _measure(load_run(run.path), data, settings, run.results)
            save(run, results[label][1])
    return [_row(label, found) for label, found in results.items()], results


def _epochs(row: Row, settings: DemoSettings) -> int:
    """Epochs of a row: its own, unless the demo has fewer."""
    return min(settings.epochs, int(row.train.get("epochs", settings.epochs)))


def _check_folder(output: Path) -> None:
    """Refuse a folder with other things in it: the demo replaces its runs without asking."""
    check_writable(output)
    foreign = output.is_dir() and any(not file.name.startswith(".") for file in output.iterdir())
    if foreign and not (output / _MARK).is_file():
        raise InputError(f"{output} holds other files; give the demo a new or empty folder as --output.")


def _measure(classifier: PromptedCLIP, data: Dataset, settings: DemoSettings, store: Path) -> list[Result]:
    """Clean accuracy on all held-out images, attacks on ``limit`` of them, the strongest on ``few`` of those."""
    plan: list[tuple[Any, Any]] = [("clean", "all"), (settings.attacks, settings.limit)]
    plan += [(settings.strongest, settings.few)] if settings.few else []
    return [
        evaluate(
            classifier,
            data,
            attacks=attacks,
            limit=limit,
            store=store,
            eps=settings.eps,
            seed=settings.seed,
            control=False,  # zero-shot CLIP has a row of its own
            checks=False,
            batch_size=128,  # AutoAttack's answers depend on it, and the table is the same on every machine
        )
        for attacks, limit in plan
    ]


def _row(label: str, results: list[Result]) -> dict[str, Any]:
    clean, attacked, *strongest = results
    accuracies = {name: score.accuracy for found in (attacked, *strongest) for name, score in found.attacks.items()}
    counts = {"n_clean": clean.n, "n_attacked": attacked.n}
    if strongest:
        counts["n_strongest"] = strongest[0].n
    return {"method": label, "clean": clean.clean, **accuracies, **counts}


def _differences(results: list[Result], control: list[Result]) -> dict[str, dict[str, Any]]:
    """Points above the control under each attack, with paired intervals."""
    found = {}
    for own, other in zip(results, control, strict=True):
        for name in own.attacks or ("clean",):
            pair = own.robust_mask(name).float().numpy(), other.robust_mask(name).float().numpy()
            difference = paired_bootstrap(*pair)
            found[name] = {**{key: round(value, 2) for key, value in asdict(difference).items()}, "n": own.n}
    return found


def _expected_seconds(clip: DualEncoder, data: Dataset, settings: DemoSettings) -> float:
    """Predict the time of all trainings and attacks from one timed pass and its way back; robust accuracies are guesses."""
    model = PromptedCLIP(clip, None, data.class_names, data.templates).frozen()
    x = torch.rand(128, 3, clip.info.image_size, clip.info.image_size, requires_grad=True)
    took = []
    for _ in range(4):
        started = time.perf_counter()
        model(x).sum().backward()
        took.append(time.perf_counter() - started)
    per_image = 2 * min(took) / len(x)  # prompts double the rows of an image
    more = len(load_data(settings.data, shots="all").train)
    own = _epochs(list(METHODS.values())[-1], settings)
    images = settings.epochs * 2 * len(data.train) + own * more
    training = (
        images * 7
    )  # two steps of the attack and the loss with their gradients, tuning the teacher, and its answers
    standing = 0.3 + 0.3 + 0.6
    attacks = standing * (settings.limit * 200 + settings.few * 4900)
    return per_image * (training + attacks)


def _picture(output: Path, clip: DualEncoder, data: Dataset, settings: DemoSettings) -> bytes:
    """Draw the first test images of a random sample, as zero-shot CLIP and the most robust run see them."""
    few = data.test.sample(min(SHOWN, len(data.test)), settings.seed).decode(clip.info.preprocessing)
    x, threat = few.pixels(), ThreatModel(parse_eps(settings.eps))
    zero_shot = PromptedCLIP(clip, None, data.class_names, data.templates)
    robust = load_run(output / list(METHODS)[-1], encoder=clip)
    results = [
        attacked(name, classifier, x, few.labels, few.ids, threat, settings.seed)
        for name, classifier in ((ZERO_SHOT, zero_shot), (list(METHODS)[-1], robust))
    ]
    title = f"PGD-20 at eps {settings.eps}: what is added (amplified),\nand what each classifier then says"
    return draw(x, few.labels, data.class_names, results, title)
