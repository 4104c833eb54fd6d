"""What this machine has for apd: versions, devices, caches, and packages that come with extras."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from packaging.requirements import Requirement

from apd.util.device import pick_device
from apd.util.extras import install_command
from apd.util.versions import versions

PACKAGE = "adversarial-prompt-distillation"
USES = {
    "docs": "build the documentation",
    "explore": "apd explore",
    "hub": "data sets of the Hugging Face hub, parquet files",
    "onnx": "apd export --to onnx",
    "parquet": "results.parquet of apd bench",
    "ray": "apd bench --engine ray",
    "report": "apd report, plots of apd bench",
    "serve": "apd serve",
    "siglip": "SigLIP tokenizers",
    "tensorboard": "train.tensorboard",
    "timm": "EVA, MobileCLIP and other image towers of timm",
    "fuzz": "python -m benchmarks.fuzz_guided, on Linux with x86-64",
    "dev": "work on apd itself",
}
"""Extras and what needs them."""
_PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"
"""There in a checkout, where it is newer than what an editable install has recorded."""
_GB = 10**9
_NVIDIA = Path("/proc/driver/nvidia/version")
"""There if the machine has an NVIDIA driver, whatever torch can use."""


def describe_environment() -> dict[str, Any]:
    """Describe this machine, as `apd doctor --json` prints it.

    Returns:
        ``versions``, ``platform``, ``devices`` (the one that ``auto`` picks first), ``caches``, ``offline``, ``extras``
        (missing packages and the command that installs them) and ``problems``, a sentence each.
    """
    devices, caches = _devices(), _caches()
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "devices": devices,
        "caches": caches,
        "offline": _offline(),
        "data_root": os.environ.get("APD_DATA"),
        "extras": extras(),
        "problems": [*_device_problems(devices), *_cache_problems(caches)],
    }


def extras() -> list[dict[str, Any]]:
    """List the extras of this package: ``extra``, ``use``, ``installed`` versions, ``missing``, ``unfit``, ``install``.

    ``unfit`` holds packages whose version is another than the extra asks for: ``installed``, ``wanted`` and the ``problem``.
    A checkout's ``pyproject.toml`` says them, otherwise the installed package. Empty where there is neither.
    """
    return [_extra(name, wanted) for name, wanted in sorted((_of_checkout() or _of_installed()).items())]


def _of_checkout() -> dict[str, list[Requirement]]:
    """Requirements by extra, from the checkout that this code lies in; empty outside of one."""
    if not _PROJECT.is_file():
        return {}
    project = tomllib.loads(_PROJECT.read_text(encoding="utf-8")).get("project", {})
    if project.get("name") != PACKAGE:
        return {}
    wanted = project["optional-dependencies"].items()
    return {extra: [need for need in map(Requirement, texts) if need.name != PACKAGE] for extra, texts in wanted}


def _of_installed() -> dict[str, list[Requirement]]:
    """Requirements by extra, as recorded when the package was installed; empty if it is not."""
    try:
        required = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[Requirement]] = {}
    for need in map(Requirement, required):
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", str(need.marker))
        if extra and need.name != PACKAGE:
            found.setdefault(extra[1], []).append(need)
    return found


def _extra(name: str, needs: list[Requirement]) -> dict[str, Any]:
    found = {need.name: _version(need.name) for need in needs}
    return {
        "extra": name,
        "use": USES.get(name, ""),
        "installed": {package: version for package, version in found.items() if version},
        "missing": [package for package, version in found.items() if version is None],
        "unfit": {need.name: about for need in needs if (about := _unfit(need, found[need.name]))},
        "install": install_command(name),
    }


def _unfit(need: Requirement, installed: str | None) -> dict[str, str] | None:
    """Say what is wrong with an installed version; None where it is in the range that is asked for."""
    if installed is None or need.specifier.contains(installed, prereleases=True):
        return None
    least = [one for one in need.specifier if one.operator in (">=", ">", "~=")]
    old = any(not one.contains(installed, prereleases=True) for one in least)
    return {"installed": installed, "wanted": str(need.specifier), "problem": "too old" if old else "too new"}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    memory = psutil.virtual_memory()
    cpu = {
        "device": "cpu",
        "name": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(memory.total / _GB, 1),
        "free_gb": round(memory.available / _GB, 1),
    }
    found = [cpu]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        about = {"memory_gb": round(total / _GB, 1), "free_gb": round(free / _GB, 1)}
        found.append({"device": f"cuda:{index}", "name": torch.cuda.get_device_name(index), **about})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU"})
    picked = pick_device("auto")
    return sorted(found, key=lambda device: str(device["device"]).partition(":")[0] != picked)


def _device_problems(devices: list[dict[str, Any]]) -> list[str]:
    if _NVIDIA.exists() and not any(str(device["device"]).startswith("cuda") for device in devices):
        return [
            f"There is an NVIDIA driver, but torch {versions()['torch']} sees no GPU: install a torch built for CUDA "
            "(https://pytorch.org/get-started/locally)."
        ]
    return []


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _caches() -> list[dict[str, Any]]:
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE)
    models = sorted(folder.name[8:].replace("--", "/") for folder in hub.glob("models--*"))
    return [
        {**_place("CLIP models and data of the Hugging Face hub (HF_HOME)", hub), "models": models},
        _place("temporary files (TMPDIR)", Path(tempfile.gettempdir())),
    ]


def _place(what: str, path: Path) -> dict[str, Any]:
    """A folder, whether it can be written, and the room on its disk."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    about = {"exists": path.exists(), "writable": os.access(there, os.W_OK)}
    return {"what": what, "path": str(path), **about, "free_gb": round(shutil.disk_usage(there).free / _GB, 1)}


def _cache_problems(caches: list[dict[str, Any]]) -> list[str]:
    return [f"{cache['path']} cannot be written: {cache['what']}." for cache in caches if not cache["writable"]]
