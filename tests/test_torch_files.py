"""Files of torch are read without executing anything: state dictionaries, training checkpoints, TorchScript archives."""

from __future__ import annotations

import argparse
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from apd.util.torch_files import Inert, read_torch_file

from .refusals import refused


class Bomb:
    """Makes a file by being unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.file)!r}, 'w').close()",)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 2, bias=False)
        self.blocks = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5))
        self.proj = nn.Parameter(torch.randn(5, 2))
        self.register_buffer("mask", torch.ones(2, 2))
        self.side = 16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.conv1(x).mean(dim=(2, 3))) @ self.proj


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = Tower()
        self.logit_scale = nn.Parameter(torch.ones([]) * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x) * self.logit_scale.exp()


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_with_code_is_refused_and_not_executed(tmp_path: Path, old: bool) -> None:
    mark, file = tmp_path / "executed", tmp_path / "model.pth.tar"
    torch.save({"state_dict": {"ctx": torch.ones(2)}, "bomb": Bomb(mark)}, file, _use_new_zipfile_serialization=not old)
    with refused(str(file), "exec"):
        read_torch_file(file, str(file))
    assert not mark.exists()


def test_a_plain_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    mark, file = tmp_path / "executed", tmp_path / "model.pt"
    file.write_bytes(pickle.dumps({"ctx": Bomb(mark)}))
    with refused(str(file)):
        read_torch_file(file, str(file))
    assert not mark.exists()


def test_a_bomb_behind_torchscript_is_not_executed(tmp_path: Path) -> None:
    mark, file = tmp_path / "executed", tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(Whole()), file)
    held = io.BytesIO()
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(held, "w") as spoiled:
        for entry in archive.infolist():
            data = archive.read(entry)
            spoiled.writestr(
                entry.filename, pickle.dumps(Bomb(mark), 2) if entry.filename.endswith("/data.pkl") else data
            )
    file.write_bytes(held.getvalue())
    with refused(str(file), "exec"):
        read_torch_file(file, str(file))
    assert not mark.exists()


def test_a_namespace_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    torch.save({"state_dict": {"ctx": torch.ones(2)}, "args": argparse.Namespace(lr=1)}, file)
    with refused(str(file), "argparse.Namespace", "state_dict"):
        read_torch_file(file, str(file))


def test_optimisers_and_schedulers_of_training_code_are_passed_over(tmp_path: Path) -> None:
    """Dassl keeps the state of a scheduler, which holds another scheduler and with it the optimiser."""
    file, layer = tmp_path / "model.pth.tar-5", nn.Linear(2, 3)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 5)
    content = {
        "state_dict": layer.state_dict(),
        "epoch": 5,
        "optimizer": optimiser.state_dict(),
        "scheduler": {"last_epoch": 1, "successor": scheduler},
        "val_result": 81.5,
    }
    torch.save(content, file)
    found = read_torch_file(file, str(file))
    assert torch.equal(found["state_dict"]["weight"], layer.weight)
    assert isinstance(found["scheduler"]["successor"], Inert)
    assert found["val_result"] == 81.5


@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, torch.rand(1, 3, 4, 4))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_torchscript_archive_gives_its_state_dictionary(
    tmp_path: Path, make: Callable[[nn.Module], Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, model = tmp_path / "model.pt", Whole()
    script = make(model)
    script.to(dtype)
    torch.jit.save(script, file)
    monkeypatch.setattr(torch.jit, "load", None)
    found = read_torch_file(file, str(file))
    wanted = {name: value.to(dtype) for name, value in model.state_dict().items()}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_files_that_are_not_there_or_damaged_are_refused(tmp_path: Path) -> None:
    with refused("missing.pt"):
        read_torch_file(tmp_path / "missing.pt", "missing.pt")
    file = tmp_path / "cut.pt"
    torch.save({"x": torch.ones(100)}, file)
    file.write_bytes(file.read_bytes()[:300])
    with refused("cut.pt"):
        read_torch_file(file, "cut.pt")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with refused("cut.pt", "git lfs pull"):
        read_torch_file(file, "cut.pt")
