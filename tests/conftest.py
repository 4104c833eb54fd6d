"""Fixtures shared by all tests: small random CLIPs, images and a run, made once a session; the command line."""

from __future__ import annotations

import copy
import functools
import gc
import logging
import os
import random
import shutil
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
import yaml

from apd.attacks import PGD, autoattack
from apd.bench import estimate
from apd.cli import main
from apd.evaluation import checks, surface
from apd.models import DualEncoder, huggingface, load_clip
from apd.models.prompts import Prompts
from apd.runs.config import RunConfig, load_config
from apd.runs.folder import Run
from apd.runs.load import describe_encoder
from apd.training import loop
from apd.util.versions import versions

from .command_line import QUICK, Answer, Cli, Said, call, ctrl_c_as_before
from .models import save_clip, save_colours
from .plugins import BROKEN_METHODS, WORDLESS
from .runs import NAMES, TEMPLATES
from .suites import Write, tiny

# Sums depend on the number of threads in the last digit; processes started by tests inherit this.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
GLYPHS = str(files("apd") / "assets" / "glyphs")
TESTBED = Path(__file__).resolve().parents[2] / "shared" / "testbed"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with a reason, what this machine cannot run."""
    for item in items:
        if "testbed" in item.keywords and not TESTBED.is_dir():
            item.add_marker(pytest.mark.skip(reason="needs ../shared/testbed beside the checkout"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """Keep the garbage collector off what lives to the end: all modules and tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draw the same numbers in every run of a test, whichever tests came before it in this process."""
    random.seed(0)
    np.random.seed(0)
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:  # which would keep the stack for a GPU to come: a thousand times the time of the seed
        torch.default_generator.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def short_calibration() -> Iterator[None]:
    """Estimates of a bench need a second of measuring to be good, and tests start dozens of benches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "_PATIENCE", 0.02)
        yield


@pytest.fixture(scope="session", autouse=True)
def without_waiting_for_the_disk() -> Iterator[None]:
    """What a test writes outlives no power cut: dozens of waits per training would be a large share of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: os.fstat(file) and None)
        yield


@pytest.fixture(scope="module")
def short_checks() -> Iterator[None]:
    """For files that are not about what health checks find: their attacks take most of the time of an evaluation."""

    def few(steps: int, **more: Any) -> PGD:
        return PGD(min(steps, 2), **more)

    with pytest.MonkeyPatch.context() as patch:
        for module in (checks, surface):
            patch.setattr(module, "PGD", few)
        patch.setattr(surface, "HALVINGS", 2)
        yield


@pytest.fixture
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Square asks 500 times, not 5,000, which takes seconds where an image stands; tests that count passes count all."""
    standard = autoattack._standard

    def with_few(*given: Any) -> Any:
        library = standard(*given)
        library.square.n_queries = 500
        return library

    monkeypatch.setattr(autoattack, "_standard", with_few)


@pytest.fixture
def brief_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers for unlabelled images that are tuned for as long as is asked for, and not until they know anything."""
    monkeypatch.setattr(loop, "TEACHER_EPOCHS", 1)


@pytest.fixture(scope="session", autouse=True)
def commands_once() -> Iterator[None]:
    """Typer makes all commands anew at each call of the command line, which takes as long as a small evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(scope="session")
def testbed() -> Path:
    """The real small CLIP and real images beside the checkout."""
    return TESTBED


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP on disk."""
    return save_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="session")
def shallow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP on disk with as few blocks as can be deep: for what is done with any model, in half the time."""
    return save_clip(tmp_path_factory.mktemp("models") / "shallow", depths=(2, 2))


@pytest.fixture(scope="session", autouse=True)
def read_once(clip_folder: Path, shallow_folder: Path) -> Iterator[None]:
    """Give copies of the models that most tests load, whose files no test changes: reading them takes longer."""
    read, kept = huggingface._read, dict[tuple[str, ...], Any]()

    def copied(folder: str, source: str, config: Any, dtype: torch.dtype, where: dict[str, Any]) -> Any:
        if folder not in (GLYPHS, str(clip_folder.resolve()), str(shallow_folder.resolve())):
            return read(folder, source, config, dtype, where)
        key = (folder, str(dtype), str(where))
        if key not in kept:
            kept[key] = read(folder, source, config, dtype, where)
        return copy.deepcopy(kept[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface, "_read", copied)
        yield


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SigLIP on disk."""
    return save_clip(tmp_path_factory.mktemp("models") / "siglip", "siglip")


@pytest.fixture(scope="session")
def clip(clip_folder: Path) -> DualEncoder:
    """A random CLIP, loaded."""
    return load_clip(clip_folder)


@pytest.fixture(scope="session")
def shallow(shallow_folder: Path) -> DualEncoder:
    """A random CLIP with few blocks, loaded."""
    return load_clip(shallow_folder)


@pytest.fixture(scope="session")
def siglip(siglip_folder: Path) -> DualEncoder:
    """A random SigLIP, loaded."""
    return load_clip(siglip_folder)


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of class folders with images in three colours."""
    return save_colours(tmp_path_factory.mktemp("images") / "colours")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """What the library has said so far, as a program with logging of its own gets it."""
    caplog.set_level(logging.INFO, "apd")
    return lambda: caplog.messages


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `apd` in this process, with the arguments as a shell would split them."""

    def run_here(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["apd", *map(str, arguments)])
        capfd.readouterr()
        with ctrl_c_as_before(), pytest.raises(SystemExit) as stop:
            main()
        out, err = capfd.readouterr()
        return Answer(int(stop.value.code or 0), out, err)

    return run_here


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, shallow_folder: Path, colours: Path) -> Path:
    """A run made by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "colours"
    answer = call("train", colours, "--model", shallow_folder, *QUICK, "--output", folder)
    assert answer.code == 0, answer.err
    assert answer.out == ""
    assert f"apd evaluate {folder}" in answer.err
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def write(tmp_path: Path, shallow_folder: Path, colours: Path) -> Write:
    """Writes the tiny suite, with changes, to a file."""

    def to_file(**changes: Any) -> Path:
        file = tmp_path / "tiny.yaml"
        file.write_text(yaml.safe_dump(tiny(shallow_folder, colours, **changes)))
        return file

    return to_file


@pytest.fixture
def config(clip_folder: Path) -> RunConfig:
    return load_config(flags={"model": str(clip_folder), "data.source": "colours", "method.name": "advvlp"})


@pytest.fixture
def manifest(clip: DualEncoder, config: RunConfig) -> dict[str, Any]:
    return {
        "model": describe_encoder(clip.info),
        "data": {"name": "colours"},
        "class_names": NAMES,
        "templates": TEMPLATES,
        "prompts": config.method.settings.prompts.model_dump(mode="json"),
        "seeds": {"train": 0},
        "versions": versions(),
    }


@pytest.fixture
def finished(tmp_path: Path, clip: DualEncoder, config: RunConfig, manifest: dict[str, Any]) -> Run:
    """A finished run with random prompts."""
    run = Run.create(tmp_path / "finished", config, manifest)
    run.log({"step": 1, "loss": 0.5})
    run.save_prompts(Prompts.initial(config.method.settings.prompts, clip, seed=3, n_classes=len(NAMES)).state_dict())
    run.finish({"val_clean": 90.0})
    return run


@pytest.fixture
def broken_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package most of whose methods cannot be used."""
    about = tmp_path / "others-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    points = "\n".join(f"{name} = {place}" for name, place in BROKEN_METHODS.items())
    (about / "entry_points.txt").write_text(f"[apd.methods]\n{points}\n")
    (tmp_path / "wordless.py").write_text(WORDLESS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wordless", raising=False)
