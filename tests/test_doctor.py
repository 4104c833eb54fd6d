"""`apd doctor`, shell completion, and JSON from every command that ends with a result."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch

from apd.cli import app
from apd.runs.folder import Run
from apd.util import environment
from apd.util.environment import PACKAGE, USES
from apd.util.extras import install_command
from apd.util.versions import versions

from .command_line import QUICK, Cli
from .refusals import contains
from .suites import Write, here

PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]


def test_doctor_describes_this_machine(cli: Cli) -> None:
    answer = cli("doctor", "--json")
    found = json.loads(answer.out)
    assert answer.code == 0 and found["problems"] == []
    assert found["versions"] == versions()
    assert [device["device"] for device in found["devices"]][-1] == "cpu" or not torch.cuda.is_available()
    assert all(cache["free_gb"] >= 0 and Path(cache["path"]).is_absolute() for cache in found["caches"])
    shown = cli("doctor").out
    assert all(device["device"] in shown for device in found["devices"])
    long = [line for line in shown.splitlines() if len(line) > 80 and "pip install" not in line]
    assert all(len(line.split()) <= 2 for line in long), long


def test_what_each_extra_is_for_is_said() -> None:
    assert PROJECT["name"] == PACKAGE
    assert set(USES) == set(PROJECT["optional-dependencies"])


def test_missing_packages_are_listed_with_the_command_that_installs_them(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    required = ["torch>=2", "ray>=2.50; extra == 'ray'", "none-such>=1; extra == 'ray'", "pytest>=8; extra == 'dev'"]
    monkeypatch.setattr(environment, "_PROJECT", Path("/nowhere/pyproject.toml"))
    monkeypatch.setattr(metadata, "requires", lambda _: required)
    dev, ray = environment.extras()
    assert (dev["missing"], dev["installed"]) == ([], {"pytest": metadata.version("pytest")})
    assert "none-such" in ray["missing"] and ray["install"] == install_command("ray")
    shown = cli("doctor").out
    assert "none-such" in shown and install_command("ray") in shown


def test_a_version_out_of_range_is_told_with_the_command_that_installs_another(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    required = ["pytest>=99; extra == 'dev'", "numpy>=1,<2; extra == 'old'", "numpy>=1; extra == 'fine'"]
    monkeypatch.setattr(environment, "_PROJECT", Path("/nowhere/pyproject.toml"))
    monkeypatch.setattr(metadata, "requires", lambda _: required)
    found = {extra["extra"]: extra["unfit"] for extra in environment.extras()}
    version = metadata.version("pytest")
    assert found["dev"] == {"pytest": {"installed": version, "wanted": ">=99", "problem": "too old"}}
    assert found["old"]["numpy"]["problem"] == "too new" and found["fine"] == {}
    shown = cli("doctor").out
    assert contains(shown, version, "too old") and f"numpy {metadata.version('numpy')}" in shown
    assert install_command("dev") in shown and install_command("fine") not in shown


def test_a_checkout_s_extras_count_and_not_those_of_an_older_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["ray>=2.50; extra == 'ray'"])
    assert {found["extra"] for found in environment.extras()} == set(PROJECT["optional-dependencies"])
    assert {"fastapi", "prometheus-client", "uvicorn"} <= {
        package
        for found in environment.extras()
        if found["extra"] == "serve"
        for package in (*found["installed"], *found["missing"])
    }
    for name, extras in ((PACKAGE, ["new"]), ("another-project", ["ray"])):
        monkeypatch.setattr(environment, "_PROJECT", tmp_path / "pyproject.toml")
        text = f'[project]\nname = "{name}"\n[project.optional-dependencies]\nnew = ["{PACKAGE}[ray]", "none-such>=1"]'
        (tmp_path / "pyproject.toml").write_text(text)
        assert [found["extra"] for found in environment.extras()] == extras


def test_doctor_fails_where_apd_cannot_work(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apd.models.load_clip", lambda _: 1 / 0)
    answer = cli("doctor", "--json")
    (problem,) = json.loads(answer.out)["problems"]
    assert answer.code == 1 and "ZeroDivisionError" in problem


def test_a_gpu_that_torch_does_not_see_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").touch()
    monkeypatch.setattr(environment, "_NVIDIA", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (problem,) = environment.describe_environment()["problems"]
    assert versions()["torch"] in problem


@pytest.mark.parametrize(("typed", "wanted"), [("ev", "evaluate"), ("pre", "predict"), ("train --sh", "--shots")])
def test_shells_complete_commands_and_flags_without_loading_torch(typed: str, wanted: str) -> None:
    words = f"apd {typed}"
    code = "import sys, apd.cli\ntry: apd.cli.main()\nfinally: sys.stderr.write(str('torch' in sys.modules))"
    asked = {"_APD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **asked}, check=False
    )
    assert wanted in shown.stdout.split() and shown.stderr.endswith("False"), shown.stderr


def test_commands_that_end_with_a_result_print_json() -> None:
    with_json = {
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback is not None and "as_json" in inspect.signature(command.callback).parameters
    }
    assert with_json >= {"train", "evaluate", "predict", "average", "bench", "demo", "list", "doctor"}


def test_train_and_average_print_json(cli: Cli, clip_folder: Path, colours: Path, tmp_path: Path) -> None:
    folders = []
    for seed in (0, 1):
        answer = cli(
            "train", colours, "--model", clip_folder, *QUICK, "--seed", seed, "--output", tmp_path / str(seed), "--json"
        )
        found = json.loads(answer.out)
        folders.append(found["run"])
        manifest = Run.open(found["run"]).manifest
        assert {key: manifest[key] for key in found if key != "run"} == {k: v for k, v in found.items() if k != "run"}
        assert found["status"] == "done" and found["prompts_sha256"]
    mean = json.loads(cli("average", *folders, "--output", tmp_path / "mean", "--json").out)
    assert mean["run"] == str(tmp_path / "mean")
    assert mean["averaged"] == Run.open(tmp_path / "mean").manifest["averaged"]


def test_bench_prints_json(cli: Cli, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apd.bench.find_machine", lambda *_: here())
    block = {"protocol": "few-shot", "data": "colours", "methods": ["zero-shot", "vlp"]}
    answer = cli("bench", write(blocks=[block]), "--output", tmp_path / "bench", "--json")
    found = json.loads(answer.out)
    lines = (tmp_path / "bench" / "results.csv").read_text().splitlines()
    assert answer.code == 0 and found["failures"] == {} and found["output"] == str(tmp_path / "bench")
    assert len(found["rows"]) == len(lines) - 1
    assert [name for name in found["rows"][0] if name != "unlabelled"] == lines[0].split(",")
