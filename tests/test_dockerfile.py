"""The Dockerfile: what it needs is there, it does not run as root, and it starts a server that exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import typer
from typer.main import get_command

from apd.cli import app

ROOT = Path(__file__).resolve().parents[1]
LINES = re.sub(r"\s*\\\n\s*", " ", (ROOT / "Dockerfile").read_text()).splitlines()
STEPS = [line.split(maxsplit=1) for line in LINES if line and not line.startswith("#")]


def steps(name: str) -> list[str]:
    return [rest for step, rest in STEPS if step == name]


def test_every_instruction_is_one_of_docker() -> None:
    known = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "VOLUME", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "CMD"}
    assert {step for step, _ in STEPS} == known
    assert STEPS[0][0] == "FROM"


def test_copied_files_exist_and_get_past_dockerignore() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [name.removeprefix("./") for rest in steps("COPY") for name in rest.split()[:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    assert set(copied) == allowed


def test_versions_are_pinned() -> None:
    installs = [command for rest in steps("RUN") for command in rest.split("&&") if "pip install" in command]
    assert installs and all("--constraint constraints.txt" in command for command in installs)
    assert "'.[serve]'" in installs[-1]


def test_it_does_not_run_as_root() -> None:
    (user,) = steps("USER")
    order = [step for step, _ in STEPS]
    assert user == "apd" and f"useradd --create-home --uid 10001 {user}" in steps("RUN")
    assert order.index("USER") > max(i for i, step in enumerate(order) if step in ("RUN", "COPY"))


def test_the_command_is_one_of_ours_and_its_port_is_exposed_and_checked() -> None:
    (command,), (port,), (check,) = steps("CMD"), steps("EXPOSE"), steps("HEALTHCHECK")
    program, *arguments = json.loads(command)
    assert program == "apd"
    cli = get_command(app)
    assert isinstance(cli, typer.core.TyperGroup)
    found = cli.commands[arguments[0]].make_context("serve", arguments[1:], resilient_parsing=False)
    assert found.params["port"] == int(port) and found.params["host"] == "0.0.0.0"
    assert str(found.params["run"]) in steps("VOLUME")
    compile(json.loads(check.split("CMD ")[1])[2], "HEALTHCHECK", "exec")
    assert f":{port}/healthz" in check
