"""Fixtures shared by all tests: small random CLIPs, images and a run, made once a session; the command line."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from apd.cli import main
from apd.models import DualEncoder, load_clip

from .command_line import QUICK, Answer, Cli, in_process
from .models import save_clip, save_colours

# Sums depend on the number of threads in the last digit; processes started by tests inherit this.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
TESTBED = Path(__file__).resolve().parents[2] / "shared" / "testbed"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with a reason, what this machine cannot run."""
    for item in items:
        if "testbed" in item.keywords and not TESTBED.is_dir():
            item.add_marker(pytest.mark.skip(reason="needs ../shared/testbed beside the checkout"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def testbed() -> Path:
    """The real small CLIP and real images beside the checkout."""
    return TESTBED


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP on disk."""
    return save_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SigLIP on disk."""
    return save_clip(tmp_path_factory.mktemp("models") / "siglip", "siglip")


@pytest.fixture(scope="session")
def clip(clip_folder: Path) -> DualEncoder:
    """A random CLIP, loaded."""
    return load_clip(clip_folder)


@pytest.fixture(scope="session")
def siglip(siglip_folder: Path) -> DualEncoder:
    """A random SigLIP, loaded."""
    return load_clip(siglip_folder)


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of class folders with images in three colours."""
    return save_colours(tmp_path_factory.mktemp("images") / "colours")


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `apd` in this process, with the arguments as a shell would split them."""

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["apd", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capfd.readouterr()
        return Answer(int(stop.value.code or 0), out, err)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path, colours: Path) -> Path:
    """A run made by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "colours"
    done = in_process("train", colours, "--model", clip_folder, *QUICK, "--output", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert f"apd evaluate {folder}" in done.stderr
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    return shutil.copytree(trained, tmp_path / "run")
