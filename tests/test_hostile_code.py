"""Code that only a file names is not run: run folders, settings and suites may come from strangers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

import apd
from apd.bench import load_suite
from apd.bench.plan import make_plan
from apd.runs.config import load_config
from apd.runs.folder import Run
from apd.util import trust
from apd.util.trust import FLAG, note_code, refusal

from .command_line import Cli
from .models import save_clip
from .refusals import check_error, refused
from .suites import Write

_numbers = count()
CODE = """
from pathlib import Path
Path("it-ran").write_text("")
from apd.models import load_clip
def make():
    clip = load_clip("glyphs")
    return clip
def data():
    return None
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A stranger's module in the working directory, of a name that nobody has trusted yet."""
    name = f"stranger{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(trust, "_of_user", set())
    monkeypatch.setattr(trust, "_of_files", {})
    yield name
    sys.modules.pop(name, None)


def ran() -> bool:
    return Path("it-ran").exists()


def change(file: Path, **values: Any) -> None:
    """Change the manifest or the settings of a run, section by section."""
    is_json = file.suffix == ".json"
    content = json.loads(file.read_text()) if is_json else yaml.safe_load(file.read_text())
    for key, value in values.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(content) if is_json else yaml.safe_dump(content))


def test_a_run_folder_does_not_run_the_code_that_it_names_as_its_model(module: str, run: Path, cli: Cli) -> None:
    change(run / "run.json", model={"source": f"{module}:make"})
    for command in ("evaluate", "calibrate", "explore"):
        check_error(cli(command, run), [f"{module}:make", "run.json", FLAG])
    check_error(cli("predict", run, run / "none.png"), ["none.png"])
    with refused(f"{module}:make", "run.json"):
        apd.load_run(run)
    assert not ran()
    answer = cli("evaluate", run, "--model", f"{module}:make")
    assert ran() and answer.code == 2 and "weights_sha256" in answer.err, (
        "named by the user, it is read, and is another model"
    )


def test_a_run_folder_does_not_run_code_by_its_tower_its_data_or_its_method(module: str, run: Path, cli: Cli) -> None:
    config = (run / "config.yaml").read_text()
    change(run / "config.yaml", data={"source": f"{module}:data"})
    check_error(cli("evaluate", run), [f"{module}:data", "config.yaml"])
    (run / "config.yaml").write_text(config)
    change(run / "config.yaml", method={"name": f"{module}:Method"})
    assert Run.open(run).config.method.name == f"{module}:Method", "known by name, and not needed any more"
    (run / "tower.pt").write_bytes(b"weights")
    change(run / "run.json", model={"source": f"{module}:make+{run / 'tower.pt'}"})
    with refused(f"{module}:make"):
        apd.load_run(run)
    assert not ran()


@pytest.mark.parametrize("name", ["os:abort", "antigravity:fly", "subprocess:Popen"])
def test_neither_does_it_call_what_is_installed(module: str, run: Path, name: str) -> None:
    change(run / "run.json", model={"source": name})
    with refused(name):
        apd.load_run(run)


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("method", {"name": "{}:Method"}),
        ("train", {"attack": {"kind": "{}:Attack"}}),
        ("train", {"attack": {"loss": "{}:loss"}}),
    ],
)
def test_settings_from_a_file_do_not_run_code(module: str, tmp_path: Path, section: str, value: dict[str, Any]) -> None:
    text = yaml.safe_dump({"data": "digits", section: value}).replace("{}", module)
    (tmp_path / "theirs.yaml").write_text(text)
    with refused(module, "theirs.yaml"):
        load_config(tmp_path / "theirs.yaml")
    assert not ran()


@pytest.mark.parametrize(
    "change_of_suite",
    [
        {"attacks": ["{}:attack"]},
        {"methods": {"mine": {"name": "{}:Method"}}},
        {"train": {"attack": {"kind": "{}:Attack"}}},
    ],
)
def test_suites_do_not_run_code(module: str, write: Write, change_of_suite: dict[str, Any]) -> None:
    file = write()
    suite = yaml.safe_load(file.read_text())
    asked = yaml.safe_load(yaml.safe_dump(change_of_suite).replace("{}", module))
    if "methods" in asked:
        suite["methods"] |= asked["methods"]
    else:
        suite |= asked
    file.write_text(yaml.safe_dump(suite))
    with refused(module, file.name):
        load_suite(file)
    assert not ran()


def test_a_suite_does_not_run_the_code_of_its_model_until_it_is_trusted(
    module: str, write: Write, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(trust.ENVIRONMENT, "")
    file = write(model=f"{module}:make")
    check_error(cli("bench", file, "--output", tmp_path / "bench"), [f"{module}:make", FLAG])
    assert not ran()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("apd.bench.bench", lambda suite, *_, **__: make_plan(suite) and {})
        cli("bench", file, "--output", tmp_path / "bench", FLAG)
    assert ran()


def test_a_folder_called_like_code_is_not_the_users_word_for_it(module: str, run: Path, cli: Cli) -> None:
    folder = run.rename(run.parent / f"{module}:make")
    change(folder / "run.json", model={"source": f"{module}:make"})
    check_error(cli("evaluate", folder.name), [f"{module}:make", FLAG])
    assert not ran()


def test_what_the_user_has_named_is_imported_whatever_files_say(module: str, tmp_path: Path) -> None:
    assert refusal("my_package:thing") is None
    note_code({"attacks": {"my_package:thing": [1, {"by": "other:one+tower.pt"}]}}, "results.json")
    assert "results.json" in str(refusal("my_package:thing")) and refusal("other:one") is not None
    trust.trust(["--attack", "my_package:thing,pgd-2"])
    assert refusal("my_package:thing") is None and refusal("other:one") is not None


def test_what_a_file_names_later_is_imported_where_the_user_named_it_before(module: str, run: Path) -> None:
    assert apd.load_clip(f"{module}:make").info.image_size == 32
    change(run / "run.json", model={"source": f"{module}:make"})
    with refused("weights_sha256"):
        apd.load_run(run)


def test_a_model_never_asks_on_the_terminal_whether_its_code_may_run(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object) -> str:
        raise AssertionError("asked")

    monkeypatch.setattr("builtins.input", ask)
    folder = save_clip(tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "configuration.Config", "AutoModel": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration.py").write_text("raise SystemExit('it ran')")
    check_error(cli("evaluate", "--model", folder, "--data", "digits"), ["auto_map"])


def test_a_model_brings_no_other_packages_or_models_along(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "theirs")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b", "peft_type": "LORA"}')
    with refused("adapter_config.json"):
        apd.load_clip(folder)
    (folder / "adapter_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    with refused("config.json", "quantised"):
        apd.load_clip(folder)


def test_a_name_is_noticed_however_long_the_text_around_it_is(module: str, run: Path) -> None:
    (run / "tower.pt").write_bytes(b"weights")
    change(run / "run.json", model={"source": f"{module}:make+{run}/{'./' * 600}tower.pt"})
    with refused(f"{module}:make", "run.json"):
        apd.load_run(run)
    name = f"os:{'path.os.' * 200}abort"
    change(run / "run.json", model={"source": name})
    with refused("run.json", FLAG):
        apd.load_run(run)
    assert not ran()


@pytest.mark.parametrize("text", [":" * 10**5 + "a" * 10**5, "a." * 10**5, "a:" * 10**5, "a" * 10**5 + "\\"])
def test_names_in_long_texts_take_no_time(module: str, text: str) -> None:
    note_code({"a": [text]}, "run.json")
    assert not trust.is_spec(text) and refusal(text) is None
    assert set(trust._of_files) <= {"a:a"}


def test_a_name_in_a_file_is_found_wherever_a_word_begins(module: str) -> None:
    note_code(["transfer:my_models:Toy", "hf:owner/name", "9a:b", "mean(one:A,two:B)+three:C"], "run.json")
    assert set(trust._of_files) == {"transfer:my_models", "my_models:Toy", "one:A", "two:B", "three:C"}
