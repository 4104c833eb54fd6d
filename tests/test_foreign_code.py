"""Code from elsewhere at the edges: what is recorded, what is refused, what is told apart, what runs without it."""

from __future__ import annotations

import copy
import json
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import apd
from apd.attacks import FGSMRS, NFGSM, PGD, ClimbingAttack, Objective, Replayed, ThreatModel, TrainingAttack
from apd.attacks.training import attack_section
from apd.data import Dataset
from apd.models import DualEncoder, EncoderInfo, Preprocessing
from apd.runs.config import load_config
from apd.runs.load import describe_encoder

from .command_line import Cli
from .refusals import refused

pytestmark = pytest.mark.usefixtures("short_checks")

CODE = '''
from dataclasses import dataclass
import torch
import apd
from apd.attacks import TrainingAttack
from apd.methods import METHODS

class Mine(METHODS["advvlp"]):
    """A method."""

@dataclass
class Still(TrainingAttack):
    """Leaves images as they are."""
    steps: int = 1
    def __call__(self, objective, x, threat, seeds):
        return x

def gap(z, labels):
    return -z.gather(1, labels[:, None]).squeeze(1)

def halves():
    """Black and white."""
    x = torch.arange(12).view(12, 1, 1, 1).remainder(2).expand(12, 3, 8, 8) * 255
    return apd.Dataset.from_tensors("halves", ["dark", "bright"], train=(x.byte(), torch.arange(12) % 2),
                                    test=(x.byte(), torch.arange(12) % 2))

def fails():
    raise KeyError("weights.pt")
'''
STEPZ = ["train.attack.kind=elsewhere:Still", "train.attack.options={stepz: 1}"]
QUICK = {"epochs": 1, "method": "advvlp", "batch_size": 4}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in that holds the module ``elsewhere``."""
    (tmp_path / "elsewhere.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("elsewhere", None)
    yield tmp_path
    sys.modules.pop("elsewhere", None)


@dataclass(frozen=True)
class Shift(TrainingAttack):
    """Adds a part of the budget to all pixels."""

    share: float = 1.0
    note: object = None

    def __call__(self, objective: Objective, x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
        return threat.project(x + self.share * threat.eps, x)


class Bare(DualEncoder):
    """Has neither weights nor a source of its own."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.info = EncoderInfo(image_size=8, preprocessing=Preprocessing.plain(8), context_length=1, embed_dim=3)

    def encode_image(self, x: Tensor, tokens: Any = ()) -> Tensor:
        return self.scale * x.mean(dim=(2, 3)) - 0.4

    def encode_text(self, ids: Tensor, tokens: Any = ()) -> Tensor:
        return torch.where(ids == 5, 1.0, -1.0).expand(-1, 3) + torch.tensor([0.1, 0.0, 0.0])

    def prompt_ids(self, texts: Any, n_tokens: int = 0) -> Tensor:
        return torch.tensor([[5 if "bright" in text else 1] for text in texts])


def halves() -> Dataset:
    x = (torch.arange(12) % 2).view(12, 1, 1, 1).expand(12, 3, 8, 8).to(torch.uint8) * 255
    y = torch.arange(12) % 2
    return apd.Dataset.from_tensors("halves", ["dark", "bright"], train=(x, y), test=(x, y))


def more() -> Dataset:
    return replace(halves(), unlabelled=halves().train)


class Means(torch.nn.Module):
    """As many logits as colours."""

    def __init__(self, n: int = 2) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5, mean - 9][: self.n], dim=1)


@pytest.mark.parametrize(
    ("attack", "section"),
    [
        ("pgd", {"kind": "pgd"}),
        (PGD(3, 0.5), {"kind": "pgd", "steps": 3, "step_size": 0.5, "random_start": True}),
        (FGSMRS(0.5), {"kind": "fgsm-rs", "options": {"step_size": 0.5}}),
        (NFGSM(noise=1.0), {"kind": "n-fgsm", "options": {"step_size": 1.0, "noise": 1.0}}),
        (Shift(0.5), {"kind": f"{__name__}:Shift", "options": {"share": 0.5, "note": None}}),
        (Shift, {"kind": f"{__name__}:Shift"}),
        ({"kind": Shift, "options": {"share": 2}}, {"kind": f"{__name__}:Shift", "options": {"share": 2}}),
        ({"loss": halves}, {"loss": f"{__name__}:halves"}),
    ],
)
def test_an_attack_is_recorded_with_the_settings_it_runs_with(attack: Any, section: dict[str, Any]) -> None:
    assert attack_section(attack) == section
    config = load_config(flags={"data.source": "digits", **{f"train.attack.{k}": v for k, v in section.items()}})
    made = config.train.attack.attack_class.from_settings(config.train.attack)
    if isinstance(attack, TrainingAttack):
        assert made == attack


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (PGD(2, leave=lambda z, y: y > 0), "stop_margin"),
        (Replayed(), "free"),
        (Shift(note=torch.ones(2)), "note=Tensor"),
        (Shift(note=len), "note=builtin_function_or_method"),
        (3, "int"),
        ({"kind": Bare}, "Bare"),
    ],
)
def test_an_attack_that_cannot_be_recorded_is_refused(attack: Any, named: str) -> None:
    with refused(named):
        attack_section(attack)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("method.name", "gone:Method", "gone:Method"),
        ("train.attack.kind", "gone:Attack", "gone:Attack"),
        ("train.attack.loss", "gone:loss", "gone:loss"),
        ("train.attack.kind", "elsewhere:gap", "elsewhere:gap"),
        ("train.attack.options", {"steps": 1}, "kind=pgd"),
    ],
)
def test_missing_code_is_named_with_its_setting(name: str, value: Any, named: str) -> None:
    with refused(named):
        load_config(flags={"data.source": "digits", name: value})


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: load_config(flags={"data.source": "x"}, sets=STEPZ), "stepz"),
        (lambda: apd.load_data("gone:data"), "gone:data"),
        (lambda: apd.load_data("elsewhere:fails"), "weights.pt"),
        (lambda: apd.load_data("elsewhere:gap"), "elsewhere:gap"),
        (lambda: apd.load_data("elsewhere:Still"), "Still"),
        (lambda: apd.load_data("memory:halves"), "halves"),
        (lambda: apd.load_clip("gone:Model"), "gone:Model"),
        (lambda: apd.load_clip("elsewhere:fails"), "weights.pt"),
        (lambda: apd.load_clip("elsewhere:halves"), "DualEncoder"),
        (lambda: apd.load_clip("__main__:Cell"), "__main__:Cell"),
    ],
)
def test_code_that_cannot_be_used_is_wrong_input(call: Callable[[], object], named: str) -> None:
    with refused(named):
        call()


def test_a_finished_run_is_evaluated_without_the_code_that_only_training_needs(elsewhere: Path, cli: Cli) -> None:
    sets = [f"train.attack.{pair}" for pair in ("kind=elsewhere:Still", "loss=elsewhere:gap", "options={steps: 2}")]
    flags = [part for setting in sets for part in ("--set", setting)]
    made = (
        "train",
        "digits",
        "--method",
        "elsewhere:Mine",
        "--shots",
        1,
        "--epochs",
        1,
        *flags,
    )
    assert cli(*made).code == 0
    run = Path("runs/digits-elsewhere-Mine-0")
    (elsewhere / "elsewhere.py").unlink()
    sys.modules.pop("elsewhere")
    limits = ("--attack", "pgd-1", "--limit", 4, "--json")
    answer = cli("evaluate", run, *limits)
    assert answer.code == 0 and json.loads(answer.out)["n"] == 4
    assert "elsewhere:Still" in (run / "README.md").read_text()
    again = cli("train", "--config", run / "config.yaml", "--output", "runs/again")
    assert again.code == 2 and "elsewhere:" in again.err
    gone = cli("evaluate", run, "--attack", "elsewhere:Still")
    assert gone.code == 2 and "elsewhere:Still" in gone.err


@pytest.mark.usefixtures("elsewhere")
def test_a_stopped_run_of_foreign_code_is_resumed_and_other_images_are_refused(shallow: DualEncoder) -> None:
    from apd.methods import METHODS

    stops = [3]

    class Stopping(METHODS["advvlp"]):  # type: ignore[misc]
        def loss(self, step: Any, x_adv: Tensor) -> Any:
            stops[0] -= 1
            if stops[0] == 0:
                raise KeyboardInterrupt
            return super().loss(step, x_adv)

    settings = {**QUICK, "method": Stopping, "attack": Shift(0.5), "checkpoint_every": 1, "epochs": 2}
    with pytest.raises(KeyboardInterrupt):
        apd.train(shallow, halves(), output="run", **settings)
    x, y = torch.zeros(12, 3, 8, 8, dtype=torch.uint8), torch.arange(12) % 2
    with refused("other images", "memory:halves", "--overwrite") as told:
        apd.train(
            shallow,
            Dataset.from_tensors("halves", ["dark", "bright"], (x, y), (x, y)),
            output="run",
            resume=True,
            **settings,
        )
    assert "DATA" not in str(told.value)
    with refused("train.attack.options.share=0.5", "0.25", "--overwrite"):
        apd.train(shallow, halves(), output="run", resume=True, **{**settings, "attack": Shift(0.25)})
    resumed = apd.train(shallow, halves(), output="run", resume=True, **settings)
    stops[0] = 0
    whole = apd.train(shallow, halves(), output="whole", **settings)
    assert all(torch.equal(a, resumed.load_prompts()[name]) for name, a in whole.load_prompts().items())
    result = apd.evaluate_run("run", data=halves(), attacks=[Shift(0.5), "pgd-1"], checks=False, quiet=True)
    assert set(result.attacks) == {f"{__name__}:Shift(share=0.5)", "pgd-1"}
    assert result.undefended is not None


def test_an_encoder_is_recorded_as_its_code_and_not_as_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("glyphs", f"{__name__}:Bare"):
        (tmp_path / name).mkdir()
    run = apd.train(Bare(), halves(), **{**QUICK, "method": "zero-shot"}, output="run")
    assert run.manifest["model"]["source"] == run.config.model == f"{__name__}:Bare"
    assert len(run.manifest["model"]["weights_sha256"]) == len(run.manifest["model"]["tokenizer_sha256"]) == 64
    assert apd.load_run("run").encoder.info.source == f"{__name__}:Bare"
    assert describe_encoder(apd.load_clip("glyphs").info)["source"] == "glyphs"
    assert not Bare().train().training
    needy = apd.load_clip(type("Needy", (Bare,), {"__init__": lambda self, one: Bare.__init__(self)})(1))
    apd.train(needy, halves(), **{**QUICK, "method": "zero-shot"}, output="needy")
    with refused("Needy"):
        apd.load_run("needy")
    assert apd.load_run("needy", encoder=needy).encoder is needy


def test_outcomes_of_other_code_or_settings_are_not_taken_for_ones_own(tmp_path: Path) -> None:
    def judged(model: torch.nn.Module, *attacks: object) -> Any:
        return apd.evaluate(
            model, halves(), attacks=attacks, store=tmp_path, limit=4, eps="64/255", checks=False, quiet=True
        )

    names = {Shift(0.5, "1/2"): 1, Shift(0.5, "x" * 300): 1, Shift(0.25): 1}
    result = judged(Means(), *names)
    assert len(result.attacks) == 3 and len(list(tmp_path.glob("*.jsonl"))) == 4
    assert all(score.seconds_earlier >= 0 for score in judged(Means(), *names).attacks.values())
    assert len(list(tmp_path.glob("*.jsonl"))) == 4

    with refused("lambda"):
        judged(Means(), lambda o, x, t, s: x, lambda o, x, t, s: 1 - x)
    assert [len(judged(Means(), ClimbingAttack("mine", PGD(steps))).attacks) for steps in (1, 2)] == [1, 1]


@pytest.mark.parametrize("model", [Means(3), torch.nn.Flatten(), torch.nn.AdaptiveAvgPool2d(1)])
def test_a_module_without_one_logit_per_class_is_refused(model: torch.nn.Module) -> None:
    with refused("(2, 2)"):
        apd.evaluate(model, halves(), attacks="clean", quiet=True)


class Items(list[Any]):
    """A torch data set of (image, label)."""


@pytest.mark.parametrize(
    ("items", "named"),
    [
        ([(torch.randn(3, 4, 4), i % 2) for i in range(4)], "Normalize"),
        ([(torch.rand(4, 4), i % 2) for i in range(4)], "(4, 4)"),
        ([torch.rand(3, 4, 4)] * 4, "(4, 4)"),
        ([(torch.rand(3, 4, 4), "cat")] * 4, "cat"),
        ([(torch.rand(3, 4, 4), 0.7)] * 4, "0.7"),
        ([(torch.zeros(3, 4, 4, dtype=torch.int64), 0)] * 4, "torch.int64"),
        ([(torch.rand(3, 4, 4), 7 * (i % 2)) for i in range(4)], "7"),
    ],
)
def test_torch_data_sets_of_other_items_are_refused(items: list[Any], named: str) -> None:
    with refused("it", named):
        Dataset.from_torch("it", ["a", "b"], items, items)


def test_torch_data_sets_that_cannot_be_read_or_lack_a_split_are_refused() -> None:
    class Broken(Items):
        def __getitem__(self, index: int) -> Any:
            raise OSError("broken jpg")

    items = Items([(torch.rand(3, 4, 4), i % 2) for i in range(4)])
    with refused("it train", "broken jpg"):
        Dataset.from_torch("it", ["a", "b"], Broken([None]), items)
    with refused("it", "test is None"):
        Dataset.from_torch("it", ["a", "b"], items, None)
    with refused("class_names must be a list", "'ab'"):
        Dataset.from_torch("it", "ab", items, items)
    with refused("templates must be a list"):
        Dataset.from_torch("it", ["a", "b"], items, items, templates="a {}.")


def test_labels_of_torch_data_sets_are_those_of_the_items_where_they_are_transformed() -> None:
    class Transformed(Items):
        targets: tuple[int, ...] = (1, 0, 0, 1)
        target_transform: Any = None

    items = Transformed([(torch.rand(1, 4, 4), label) for label in (1, 1, 0, 1)])
    assert Dataset.from_torch("it", ["a", "b"], items, items).test.labels.tolist() == [1, 0, 0, 1], (
        "items are not all read"
    )
    items.target_transform = (1).__sub__
    data = Dataset.from_torch("it", ["a", "b"], items, items)
    assert data.test.labels.tolist() == [1, 1, 0, 1]
    images = data.test.decode(Preprocessing.plain(4)).images
    assert images.shape == (4, 3, 4, 4) and torch.equal(images[:, 0], images[:, 2]), "grey images become RGB"


@pytest.mark.parametrize(
    ("y", "named"),
    [
        (torch.arange(4), "3"),
        (torch.arange(4) % 2 - 1, "-1"),
        (torch.zeros(3).long(), "(3,)"),
        (torch.zeros(4), "float32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(y: Tensor, named: str) -> None:
    x = torch.rand(4, 3, 4, 4)
    with refused("it", named):
        Dataset.from_tensors("it", ["a", "b"], (x, y), (x, torch.arange(4) % 2))
    for odd, named in (
        (torch.full((4, 3, 4, 4), torch.nan), "nan"),
        ([x[0]] * 4, "tensors"),
        (x * 255, f"{(x * 255).max():.3g}"),
        (x.double() - 1, f"{(x - 1).min():.3g}"),
        (x.long(), "torch.int64"),
        (x[:, :1], "(4, 1, 4, 4)"),
    ):
        with refused("it", named):
            Dataset.from_tensors("it", ["a", "b"], (odd, torch.arange(4) % 2), (x, torch.arange(4) % 2))


GROUPS = {
    "apd.models": ("models", "fails"),
    "apd.methods": ("methods", "Mine"),
    "apd.evaluation_attacks": ("attacks", "Still"),
    "apd.data": ("data", "halves"),
    "apd.attacks": ("", "Still"),
    "apd.losses": ("", "gap"),
}


def test_entry_points_of_every_kind_are_listed_and_found(elsewhere: Path, shallow_folder: Path, cli: Cli) -> None:
    about = elsewhere / "others-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    points = "".join(f"[{group}]\nother = elsewhere:{name}\n" for group, (_, name) in GROUPS.items())
    (about / "entry_points.txt").write_text(points)
    sys.path.insert(0, str(elsewhere))
    for kind in filter(None, (kind for kind, _ in GROUPS.values())):
        assert "(package others)" in next(
            line for line in cli("list", kind).out.splitlines() if line.split()[:1] == ["other"]
        )
    sets = ("--set", "train.attack.kind=other", "--set", "train.attack.loss=other", "--epochs", 1, "--shots", 2)
    answer = cli("train", "other", "--model", shallow_folder, "--method", "other", *sets, "--output", "run")
    assert answer.code == 0, answer.err
    answer = cli("evaluate", "run", "--attack", "other", "--json", "--limit", 4)
    assert answer.code == 0 and list(json.loads(answer.out)["attacks"]) == ["other"]
    assert json.loads((elsewhere / "run/run.json").read_text())["data"]["source"] == "other"
    failed = cli("evaluate", "--model", "other", "--data", "other")
    assert failed.code == 2 and "weights.pt" in failed.err


def test_labels_of_torch_data_sets_are_those_of_the_items_where_a_subclass_changes_them() -> None:
    class Swapped(Items):
        targets: tuple[int, ...] = (1, 0, 1, 0)

    items = Swapped([(torch.rand(3, 4, 4), i % 2) for i in range(4)])
    assert Dataset.from_torch("it", ["a", "b"], items, items).test.labels.tolist() == [0, 1, 0, 1]
    items.targets = (0, 1, 0)
    with refused("4 items", "3 targets"):
        Dataset.from_torch("it", ["a", "b"], items, items)


def test_torch_data_sets_that_threads_cannot_share_are_read_one_item_at_a_time() -> None:
    class Seeking(Items):
        """As one that seeks in an open file, and then reads from where that is."""

        at = 0

        def __getitem__(self, index: int) -> Any:
            self.at = index
            time.sleep(0.001)
            return super().__getitem__(self.at)

    items = Seeking([(torch.full((3, 4, 4), i, dtype=torch.uint8), i % 2) for i in range(40)])
    found = Dataset.from_torch("it", ["a", "b"], items, items).test.decode(Preprocessing.plain(4)).images
    assert found[:, 0, 0, 0].tolist() == list(range(40))


def test_data_sets_of_items_can_be_copied_and_sent_to_other_processes() -> None:
    items = Items([(torch.full((3, 4, 4), i, dtype=torch.uint8), i % 2) for i in range(4)])
    data = Dataset.from_torch("it", ["a", "b"], items, items)
    for again in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        found = again.test.decode(Preprocessing.plain(4)).images
        assert found[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
        assert len({source.func.__self__.lock for source in again.test.sources}) == 1  # type: ignore[union-attr]


def test_tensors_of_a_data_set_are_its_own() -> None:
    x, y = torch.full((8, 3, 4, 4), 7, dtype=torch.uint8), torch.arange(8) % 2
    data = Dataset.from_tensors("it", ["a", "b"], train=(x, y), test=(x, y))
    x.fill_(9)
    assert data.test.decode(Preprocessing.plain(4)).images.unique().tolist() == [7]
    with refused("train", "(images, labels)"):
        Dataset.from_tensors("it", ["a", "b"], train=x, test=(x, y))  # type: ignore[arg-type]


def test_unlabelled_images_that_a_function_gives_are_said_to_be_left_out(caplog: pytest.LogCaptureFixture) -> None:
    data = apd.load_data(f"{__name__}:more")
    assert not len(data.unlabelled) and "10 unlabelled images" in caplog.text and "--unlabelled" in caplog.text
