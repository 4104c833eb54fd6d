"""The demo: zero-shot CLIP, the control and APD on the built-in data, clean and under attack."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from apd.data import Dataset, load_data
from apd.errors import InputError
from apd.evaluation import Result, evaluate
from apd.models import DualEncoder, load_clip
from apd.models.classifier import PromptedCLIP
from apd.runs.load import load_run
from apd.training.start import train
from apd.util.files import check_writable, write_atomic
from apd.util.messages import get_logger, speaking

log = get_logger("apd.demo")


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does; ``limit`` is the number of held-out images under attack, ``eps`` in [0,1] pixel units."""

    model: str = "glyphs"
    data: str = "digits"
    shots: int = 16
    seed: int = 0
    eps: str = "14/255"
    epochs: int = 20
    limit: int | None = 30
    attacks: tuple[str, ...] = ("pgd-20", "autoattack")


DEMO = DemoSettings()
QUICK = replace(DEMO, shots=1, epochs=1, limit=16, attacks=("pgd-20", "apgd-ce"))
METHODS: dict[str, dict[str, str]] = {"control": {"name": "advvlp"}, "apd": {"name": "apd", "teacher": "tuned"}}
"""Row labels and the methods behind them; on digits a teacher tuned on clean images knows more than the template."""

_MARK = "demo.json"


def run_demo(output: Path, settings: DemoSettings = DEMO) -> dict[str, Any]:
    """Train and evaluate; leaves ``output/summary.json`` and a run folder a method.

    Args:
        output: new or empty folder, or that of an earlier demo, whose runs are replaced.
        settings: what to do.

    Returns:
        ``{"eps": text, "rows": [{"method", "clean", attack: accuracy in percent, …}], …}``.

    Raises:
        InputError: other files in ``output``, or a place that cannot be written.
    """
    _claim(output, settings)
    with speaking():
        rows = _compare(output, settings)
    summary = {"eps": settings.eps, "rows": rows, "settings": asdict(settings)}
    write_atomic(output / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _compare(output: Path, settings: DemoSettings) -> list[dict[str, Any]]:
    """The rows of the table, zero-shot CLIP first."""
    clip = load_clip(settings.model)
    data = load_data(settings.data, shots=settings.shots, seed=settings.seed)
    log.info(
        f"{clip.info.source} CLIP on {data.name}: {settings.shots} images for each of {len(data.class_names)} classes, "
        f"eps {settings.eps} at {clip.info.image_size} px"
    )
    log.info("attacking zero-shot CLIP")
    zero_shot = PromptedCLIP(clip, None, data.class_names, data.templates)
    rows = [_measure("zero-shot", zero_shot, data, settings, output / "zero-shot")[0]]
    for label in METHODS:
        rows.append(_train_and_measure(label, clip, data, settings, output / label))
    return rows


def _claim(output: Path, settings: DemoSettings) -> None:
    """Refuse a folder with other things in it: the demo replaces its runs without asking."""
    check_writable(output)
    if output.is_dir() and any(output.iterdir()) and not (output / _MARK).is_file():
        raise InputError(f"{output} holds other files; give the demo a new or empty folder as --output.")
    write_atomic(output / _MARK, json.dumps(asdict(settings), indent=2) + "\n")


def _train_and_measure(
    label: str, clip: DualEncoder, data: Dataset, settings: DemoSettings, folder: Path
) -> dict[str, Any]:
    log.info(f"training {label}")
    run = train(
        clip,
        data,
        method=METHODS[label],
        eps=settings.eps,
        output=folder,
        overwrite=True,
        epochs=settings.epochs,
        seed=settings.seed,
        device="cpu",
    )
    log.info(f"attacking {label}")
    row, result = _measure(label, load_run(run.path), data, settings, run.results)
    run.save_result(result.to_dict())
    return row


def _measure(
    label: str, classifier: PromptedCLIP, data: Dataset, settings: DemoSettings, store: Path
) -> tuple[dict[str, Any], Result]:
    """A row: clean accuracy on all held-out images, attacks on ``limit`` of them; and the attacks' result."""
    # Zero-shot CLIP has a row of its own, so it is not attacked again beside the others.
    common: dict[str, Any] = {
        "store": store,
        "eps": settings.eps,
        "seed": settings.seed,
        "control": False,
        "checks": False,
        "batch_size": 128,  # AutoAttack's answers depend on it, and the table is the same on every machine
    }
    clean = evaluate(classifier, data, attacks="clean", limit="all", **common)
    result = evaluate(classifier, data, attacks=settings.attacks, limit=settings.limit, **common)
    accuracies = {name: score.accuracy for name, score in result.attacks.items()}
    row = {"method": label, "clean": clean.clean, **accuracies, "n_clean": clean.n, "n_attacked": result.n}
    return row, result
