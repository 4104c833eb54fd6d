"""Fixtures shared by all tests: small random CLIPs and images, made once a session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from apd.clip import DualEncoder, load_clip

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
