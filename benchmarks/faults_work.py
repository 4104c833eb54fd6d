"""What `benchmarks.faults` interrupts: trainings, evaluations, exports, reports and benches of a tiny CLIP; what they leave."""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml
from PIL import Image

from apd.attacks.evaluation import Cascade, pgd_evaluation
from apd.bench import Machine, bench, engines, load_suite
from apd.bench.job import attempt
from apd.bench.loaded import encoder
from apd.data import load_data
from apd.evaluation import run_folder
from apd.evaluation.store import Record
from apd.export import exported
from apd.models import load_clip
from apd.models.encoder import DualEncoder
from apd.report import build
from apd.runs.config import load_config
from apd.runs.folder import Run
from apd.runs.load import load_run
from apd.training.start import start_training
from benchmarks.geometry import Geometry, save

TINY = Geometry("tiny", 16, 8, 64, 2, 64, 2, 32)
COLOURS = {"w1": (200, 60, 60), "w2": (60, 200, 60), "w3": (60, 60, 200)}
PER_CLASS = 12
SETS = (
    "method.teacher=frozen",
    "train.epochs=6",
    "train.batch_size=4",
    "train.eps=8/255",
    "train.attack.steps=1",
    "train.checkpoint_every=2",
    "train.validate_every=3",
    "train.log_every=1",
    "train.ema=0.9",
)
SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}
PAGE = "page.html"
CASCADE = Cascade("cascade", (pgd_evaluation(1), pgd_evaluation(2), pgd_evaluation(4)))


@dataclass(frozen=True)
class Place:
    """A tiny CLIP and images on the disk, and the CLIP in memory, where forked processes find it."""

    folder: Path
    clip: DualEncoder

    @property
    def data(self) -> Path:
        """Images of three colours."""
        return self.folder / "colours"

    @classmethod
    def make(cls, folder: Path) -> Place:
        """Make what is not there yet."""
        model = folder / "clip"
        if not (model / "config.json").is_file():
            save(TINY, model)
        generator = np.random.default_rng(0)
        for name, colour in COLOURS.items():
            (folder / "colours" / name).mkdir(parents=True, exist_ok=True)
            for number in range(PER_CLASS):
                noise = generator.normal(0, 60, (16, 16, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "colours" / name / f"{number:02d}.png")
        return cls(folder, load_clip(model))


class InProcess(Machine):
    """Does the jobs of a bench in the process of the bench."""

    def run(self, jobs: Any, folder: Path) -> Any:
        """Do jobs one after the other."""
        return (attempt(job, folder, self.threads) for job in jobs)


class Forked(Machine):
    """Does the jobs in a worker process of the local engine, forked so that it need not import everything."""

    def run(self, jobs: Any, folder: Path) -> Any:
        """Do jobs in a worker."""
        fork = SimpleNamespace(
            get_context=lambda _: multiprocessing.get_context("fork"), parent_process=multiprocessing.parent_process
        )
        engines.multiprocessing = fork  # type: ignore[assignment]
        return engines.run_local(jobs, folder, workers=self.workers, threads=self.threads)


def train(place: Place, output: Path, seed: int = 0) -> None:
    """Start or resume a training."""
    flags = {"model": str(place.folder / "clip"), "data.source": str(place.data), "data.shots": 4, "train.seed": seed}
    start_training(load_config(None, flags, SETS), clip=place.clip, output=output, resume=True, quiet=True)


def prepare_evaluation(place: Place, output: Path, run: str = "trained") -> None:
    """Copy a trained run, which is evaluated."""
    shutil.copytree(place.folder / run, output)


def evaluate(place: Place, output: Path) -> None:
    """Start or resume an evaluation that keeps its images, and what each part of an attack has found."""
    run_folder.load_run = lambda path, **_: load_run(path, encoder=place.clip)
    run_folder.evaluate_run(
        output,
        attacks=("pgd-2", "benchmarks.faults_work:CASCADE"),
        eps="8/255",
        limit=8,
        batch_size=4,
        checks=False,
        save_images=True,
        quiet=True,
    )


def prepare_export(place: Place, output: Path, form: str) -> None:
    """Export another run, whose export is replaced."""
    if not (place.folder / form).exists():
        _export(place, place.folder / form, form, place.folder / "older")
    shutil.copytree(place.folder / form, output)


def export(place: Place, output: Path, form: str) -> None:
    """Export a run in place of the other one's export."""
    _export(place, output, form, place.folder / "trained")


def _export(place: Place, output: Path, form: str, run: Path) -> None:
    exported.load_run = lambda path, **_: load_run(path, encoder=place.clip)
    exported.export_run(form, run, output / f"model{SUFFIXES[form]}", {"overwrite": True, "check_images": 64})


def prepare_report(place: Place, output: Path) -> None:
    """Copy an evaluated run, and the page on another one."""
    for name, run in (("page", "older"), ("evaluated", "trained")):
        if not (place.folder / name).exists():
            prepare_evaluation(place, place.folder / name, run)
            evaluate(place, place.folder / name)
    if not (place.folder / "page" / PAGE).exists():
        _report(place, place.folder / "page", place.folder / "page" / PAGE)
    shutil.copytree(place.folder / "evaluated", output / "run")
    shutil.copy(place.folder / "page" / PAGE, output / PAGE)


def write_report(place: Place, output: Path) -> None:
    """Write a page in place of the other run's, with images under attack and a curve, whose outcomes the run keeps."""
    _report(place, output / "run", output / PAGE)


def _report(place: Place, run: Path, page: Path) -> None:
    build.load_run = lambda path, **more: load_run(path, **{**more, "encoder": place.clip})
    build.report(run, page, curve=True, quiet=True)


def run_bench(place: Place, output: Path, machine: Machine) -> None:
    """Start or resume a bench of a training and zero-shot CLIP."""
    failures = bench(load_suite(place.folder / "suite.yaml"), output, machine=machine)
    if failures:
        raise RuntimeError(f"Runs failed: {failures}")


def write_suite(place: Place) -> None:
    """Write the suite of the bench."""
    train = {"epochs": 1, "batch_size": 4, "attack": {"steps": 1}, "checkpoint_every": 1, "validate_every": 9}
    methods = {"zero-shot": None, "advvlp": "advvlp"}
    suite = {
        "name": "faults",
        "model": str(place.folder / "clip"),
        "limit": 4,
        "attacks": ["pgd-1"],
        "train": train,
        "data": {"colours": {"source": str(place.data), "eps": "8/255", "shots": 4}},
        "methods": methods,
        "blocks": [{"protocol": "few-shot", "data": "colours", "methods": list(methods), "seeds": [0]}],
    }
    (place.folder / "suite.yaml").write_text(yaml.safe_dump(suite), encoding="utf-8")


@dataclass(frozen=True)
class Target:
    """A piece of work that is interrupted.

    Args:
        work: starts or resumes it in a folder.
        prepare: makes what it starts from.
        workers: whether its worker processes are killed instead of itself.
        replaced: names of the files in the folder that it replaces with others, all together.
        needs: module without which there is no such work.
    """

    work: Callable[[Place, Path], None]
    prepare: Callable[[Place, Path], None] | None = None
    workers: bool = False
    replaced: tuple[str, ...] = ()
    needs: str = "apd"


def _to(form: str, needs: str) -> Target:
    file = f"model{SUFFIXES[form]}"
    work, prepare = partial(export, form=form), partial(prepare_export, form=form)
    return Target(work, prepare, replaced=(file, f"{file}.json"), needs=needs)


TARGETS = {
    "training": Target(train),
    "evaluation": Target(evaluate, prepare_evaluation),
    "export to torch": _to("torch", "apd"),
    "export to onnx": _to("onnx", "onnxruntime"),
    "report": Target(write_report, prepare_report, replaced=(PAGE,), needs="jinja2"),
    "bench": Target(lambda place, output: run_bench(place, output, InProcess("local", 1, 1, 0))),
    "worker of a bench": Target(lambda place, output: run_bench(place, output, Forked("local", 1, 1, 0)), workers=True),
}


def warm_up(place: Place, names: Iterable[str] = ("evaluation", "bench")) -> None:
    """Import and load everything once, so that forked processes need not; leaves the runs that others start from.

    Args:
        place: the models and images.
        names: of the targets that will be forked.
    """
    write_suite(place)
    for seed, name in enumerate(("trained", "older")):
        run = place.folder / name
        if not run.exists() or not Run.open(run, finished=False).finished:
            train(place, run, seed)
    encoder(str(place.folder / "clip"), "cpu")
    load_data(str(place.data))
    scratch = place.folder / "warm"
    shutil.rmtree(scratch, ignore_errors=True)
    for name in names:
        target = TARGETS[name]
        if target.prepare is not None:
            target.prepare(place, scratch / name)
        target.work(place, scratch / name)
    shutil.rmtree(scratch, ignore_errors=True)
    encoder(str(place.folder / "clip"), "cpu")


def fingerprints(folder: Path, names: Sequence[str] | None = None) -> dict[str, str]:
    """A hash of what each file of a folder says, or those of these names, times left out; hidden files are in it by name."""
    found = {}
    for file in sorted(folder.rglob("*")) if names is None else [folder / name for name in names]:
        if file.is_file():
            try:
                content = repr(_content(file)).encode()
            except ValueError:  # damaged
                content = file.read_bytes()
            found[str(file.relative_to(folder))] = hashlib.sha256(content).hexdigest()[:16]
    return found


def _content(file: Path) -> Any:
    kind = file.suffix
    if kind == ".json":
        return _timeless(json.loads(file.read_text(encoding="utf-8")))
    if kind == ".jsonl" and file.name != "metrics.jsonl":
        record = Record.load(file, {})
        return sorted(map(repr, record.outcomes.values())), sorted(record.flags.items())
    if kind == ".jsonl":
        return [_timeless(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    if kind == ".csv":
        with open(file, newline="", encoding="utf-8") as stream:
            return [_timeless(row) for row in csv.DictReader(stream)]
    # Pages and plots show times.
    return None if kind in (".md", ".tex", ".parquet") or "plots" in file.parts else file.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if "second" not in key and key != "hours"}
    return [_timeless(item) for item in value] if isinstance(value, list) else value
