"""What needs a package that is not installed names the extra that brings it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from apd.util.extras import import_extra, install_command

from .command_line import QUICK, Cli
from .refusals import check_error, refused


@pytest.mark.parametrize("kind", ["parquet", "folder of parquet", "saved", "hub"])
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_tables_without_datasets_name_the_extra(
    cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, command: str
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "images.parquet").touch()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({}))
    sources = {"parquet": tmp_path / "images.parquet", "folder of parquet": tmp_path, "saved": tmp_path / "saved"}
    source = sources.get(kind, "hf:owner/name")
    answer = cli(*(("train", source) if command == "train" else ("evaluate", trained, "--data", source)))
    check_error(answer, [str(source), install_command("hub")])


def test_tensorboard_is_missed_before_training(
    cli: Cli, clip_folder: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    command = ("train", colours, "--model", clip_folder, *QUICK, "--set", "train.tensorboard=true")
    answer = cli(*command, "--output", tmp_path / "run")
    check_error(answer, ["train.tensorboard", install_command("tensorboard")])
    assert not (tmp_path / "run").exists()


def test_a_package_that_cannot_be_imported_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    with refused("'no_such_library'", install_command("ray")):
        import_extra("half_installed", "ray", "it")
