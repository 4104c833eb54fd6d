"""docs/extending.md: its examples are short, run as they stand, and are found again by name."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import apd
from apd.attacks import PGD
from apd.methods import METHODS
from apd.models import DualEncoder

from .command_line import Cli
from .refusals import refused

pytestmark = pytest.mark.usefixtures("short_checks")

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text()
EXAMPLES = {
    name: text
    for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for name in re.findall(r"^# (\w+)\.py", text)
}


def lines(code: str, *skipped: str) -> int:
    """Lines of code, without blank ones, comments, docstrings and what runs it."""
    tree = ast.parse(code.partition("if __name__")[0])
    kept = set(range(1, len(code.partition("if __name__")[0].splitlines()) + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            kept -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    text = code.splitlines()
    return sum(bool(text[i - 1].strip()) and not text[i - 1].startswith(("#", *skipped)) for i in kept)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the examples as modules."""
    for name, code in EXAMPLES.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in EXAMPLES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("name", "most"), [("my_method", 20), ("my_attack", 25), ("my_loss", 10), ("my_model", 40)])
def test_examples_are_short(name: str, most: int) -> None:
    assert 0 < lines(EXAMPLES[name]) <= most, lines(EXAMPLES[name])


def test_data_sets_take_one_line_and_five() -> None:
    tree = ast.parse(EXAMPLES["my_data"])
    tensors, torch_ = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    # The images themselves are not counted.
    assert len(tensors.body) - 1 == 1 and len(torch_.body) - 1 <= 5


@pytest.mark.parametrize("name", ["my_method", "my_attack", "my_loss", "my_data"])
def test_examples_run_as_scripts(
    name: str, here: Path, shallow: DualEncoder, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small CLIP and images of colours in the place of the built-in ones."""
    small_data = apd.load_data(colours, shots=1)
    monkeypatch.setattr(apd, "load_clip", lambda name: {"glyphs": shallow}[name])
    monkeypatch.setattr(apd, "load_data", lambda source, shots: {("digits", 1): small_data}[source, shots])
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    runpy.run_path(str(here / f"{name}.py"), run_name="__main__")
    assert list((here / "runs").glob("*/prompts.safetensors"))


def test_a_method_is_found_by_name_and_missed_by_name(
    here: Path, cli: Cli, shallow_folder: Path, colours: Path
) -> None:
    run = ("--model", shallow_folder, "--shots", "1", "--epochs", "1", "--output", "runs/smooth")
    assert cli("train", colours, "--method", "my_method:Smooth", "--set", "method.beta=2.0", *run).code == 0
    config = yaml.safe_load((here / "runs/smooth/config.yaml").read_text())
    assert config["method"]["name"] == "my_method:Smooth" and config["method"]["beta"] == 2.0
    assert cli("evaluate", "runs/smooth", "--attack", "pgd-2", "--limit", "8").code == 0
    (here / "my_method.py").unlink()
    sys.modules.pop("my_method")
    answer = cli("train", "--config", "runs/smooth/config.yaml", "--output", "runs/again")
    assert answer.code == 2 and "my_method:Smooth" in answer.err


def test_an_attack_is_found_by_name_for_training_and_evaluation(
    here: Path, cli: Cli, shallow_folder: Path, colours: Path
) -> None:
    kind = ("--set", "train.attack.kind=my_attack:Momentum", "--set", "train.attack.options={steps: 2}")
    run = ("--model", shallow_folder, "--shots", "1", "--epochs", "1", "--output", "runs/momentum")
    assert cli("train", colours, *kind, *run).code == 0
    recorded = yaml.safe_load((here / "runs/momentum/config.yaml").read_text())["train"]["attack"]
    assert recorded["kind"] == "my_attack:Momentum" and recorded["options"] == {"steps": 2}
    answer = cli("evaluate", "runs/momentum", "--attack", "my_attack:Momentum,pgd-2", "--limit", "8", "--eps", "14/255")
    assert answer.code == 0 and "my_attack:Momentum" in answer.out
    result = apd.evaluate_run("runs/momentum", attacks=[PGD(2)], limit=8, checks=False, quiet=True)
    assert any("steps=2" in name for name in result.attacks)


def test_a_foreign_model_is_trained_resumed_evaluated_predicted_with_and_benched(
    here: Path, cli: Cli, colours: Path
) -> None:
    (here / "my_model").mkdir()  # a folder that happens to lie about is not the model
    model = ("--model", "my_model:Bytes", "--method", "advvp", "--shots", "1")
    answer = cli("train", str(colours), *model, "--epochs", "1", "--output", "runs/bytes")
    assert answer.code == 0 and "Next: apd evaluate runs/bytes --model my_model:Bytes" in answer.err + answer.out
    assert cli("train", "--output", "runs/bytes", "--resume").code == 0
    assert "my_model:Bytes" in (here / "runs/bytes/README.md").read_text()
    assert cli("evaluate", "runs/bytes", "--attack", "pgd-2", "--limit", "6").code == 0
    answer = cli("predict", "runs/bytes", str(colours / "red"), "--format", "csv")
    assert answer.code == 0 and len(answer.out.splitlines()) == 13
    suite = {
        "model": "my_model:Bytes",
        "data": {"colours": {"source": str(colours), "shots": 1, "train": {"epochs": 1}}},
        "methods": {"advvp": "advvp", "zero-shot": None},
        "attacks": ["pgd-2"],
        "limit": 6,
        "blocks": [{"protocol": "few-shot", "data": "colours", "methods": ["advvp", "zero-shot"]}],
    }
    (here / "mine.yaml").write_text(yaml.safe_dump(suite))
    answer = cli("bench", "mine.yaml", "--output", "runs/bench")
    assert answer.code == 0, answer.err


def test_an_encoder_is_given_as_class_instance_and_name(here: Path) -> None:
    by_name = apd.load_clip("my_model:Bytes")
    kind = type(by_name)
    by_class, by_instance = apd.load_clip(kind), apd.load_clip(kind())
    for encoder in (by_class, by_instance):
        assert encoder.info == by_name.info and encoder.info.source == "my_model:Bytes"
    assert by_name.info.weights_sha256 and by_name.info.tokenizer_sha256
    with refused("my_model:Nothing"):
        apd.load_clip("my_model:Nothing")


def test_any_module_is_evaluated(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(here)
    import my_data

    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3))

    result = apd.evaluate(Mean(), my_data.noise(), attacks=["pgd-2"], eps="8/255", quiet=True)
    assert result.undefended is None and result.worst.accuracy < result.clean and result.image_size == 32
    with refused("Mean", "image_size"):
        apd.evaluate(Mean(), apd.load_data("digits", shots=1), attacks="clean", quiet=True)


def test_tensors_and_torch_data_sets_give_the_same_images(here: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8), torch.arange(12) % 2
    one = apd.Dataset.from_tensors("it", ["a", "b"], train=(x, y), test=(x, y))
    other = apd.Dataset.from_torch("it", ["a", "b"], *([torch.utils.data.TensorDataset(x, y)] * 2))
    plain = apd.models.Preprocessing.plain(8)
    assert torch.equal(one.test.decode(plain).images, x) and torch.equal(other.test.decode(plain).images, x)
    assert len(one.train) == len(other.train) and len(one.val) > 0 and not set(one.val.ids) & set(one.train.ids)
    with refused("it", "1", "2"):
        apd.Dataset.from_tensors("it", ["a", "b"], train=(x, y + 1), test=(x, y))
    with refused("'it'", "data=", "package.module:function"):
        apd.load_data(one.source)


def test_a_method_class_of_a_cell_is_trained_and_loaded(tmp_path: Path) -> None:
    class Cell(METHODS["advvlp"]):  # type: ignore[misc]
        pass

    clip, data = apd.load_clip("glyphs"), apd.load_data("digits", shots=1)
    run = apd.train(clip, data, method=Cell, epochs=1, output=tmp_path / "run")
    assert run.config.method.name.endswith("Cell") and apd.load_run(run.path).prompts is not None
