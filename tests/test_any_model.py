"""`apd evaluate` of classifiers that are not runs: any torch module, towers and prompt learners as their authors ship them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import apd
from apd.attacks import Preprocessed
from apd.evaluation.certified.certify import certify
from apd.evaluation.frozen import Subject
from apd.evaluation.wording.measure import evaluate_wording
from apd.models import DualEncoder
from apd.models.prompts import Prompts, PromptSpec
from apd.util.locks import FolderLock

from . import test_imported
from .command_line import Cli
from .plain_clip import TEXT, VISION, Weights, random_weights, save_open_clip
from .refusals import check_error, meant, refused
from .test_foreign_towers import bare
from .test_imported import LEARNERS, TOWERS

pytestmark = pytest.mark.usefixtures("short_checks")

FACTORIES = """
import torch
from torch import nn

class Colours(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([scale]))
        self.register_buffer("classes", torch.tensor([[0.2, 0.2, 0.8], [0.2, 0.8, 0.2], [0.8, 0.2, 0.2]]))

    def forward(self, x):
        return self.scale * x.mean(dim=(2, 3)) @ self.classes.T

def plain():
    return Colours()

def sized():
    model = Colours(2.0)
    model.image_size = 12
    return model

def named(class_names):
    assert class_names == ["blue", "green", "red"], class_names
    return sized()

def broken():
    raise RuntimeError("no weights here")

def odd():
    return nn.Linear(3, 3)

def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 7))

def number():
    return 7

ready = sized()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory that makes classifiers."""
    (tmp_path / "toy_factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "toy_factories", raising=False)
    return "toy_factories"


def evaluate(cli: Cli, classifier: str, data: Path, *more: object) -> dict[str, object]:
    answer = cli(
        "evaluate", "--classifier", classifier, "--data", data, "--attack", "pgd-2", "--limit", "all", "--json", *more
    )
    assert answer.code == 0, answer.err
    found: dict[str, object] = json.loads(answer.out)
    return found


@pytest.mark.parametrize("factory", ["sized", "named", "ready", "plain"])
def test_a_factory_s_module_is_attacked_checked_and_kept(cli: Cli, module: str, colours: Path, factory: str) -> None:
    size = ("--image-size", 12) if factory == "plain" else ()
    found = evaluate(cli, f"{module}:{factory}", colours, "--attack", "pgd-20", "--eps", "0.4", *size)
    assert found["image_size"] == 12 and found["clean"] == 100.0 and found["undefended"] is None
    assert found["worst"]["accuracy"] < 100 and len(found["checks"]) > 4  # type: ignore[index,arg-type]
    (place,) = Path("evaluations").iterdir()
    assert place.name.startswith(f"toy-factories-{factory}-")
    record = json.loads((place / "classifier.json").read_text())
    assert record["fingerprint"].startswith(place.name.rpartition("-")[2])
    assert record["class_names"] == ["blue", "green", "red"] and record["kind"] == "module"
    (summary,) = (place / "results").glob("summary-*.json")
    assert json.loads(summary.read_text()) == found


def test_a_second_call_computes_only_what_is_new_and_other_weights_have_another_folder(
    cli: Cli, module: str, colours: Path
) -> None:
    first = evaluate(cli, f"{module}:sized", colours, "--folder", "kept")
    (record,) = Path("kept").glob("*/results/pgd-2-*.jsonl")
    content = record.read_bytes()
    again = evaluate(cli, f"{module}:sized", colours, "--folder", "kept")
    assert record.read_bytes() == content and again["worst"] == first["worst"]
    # Of another size: else bytecode that was kept within the same second would be taken for it.
    Path("toy_factories.py").write_text(FACTORIES.replace("Colours(2.0)", "Colours(30.0)"))
    del sys.modules[module]
    evaluate(cli, f"{module}:sized", colours, "--folder", "kept")
    assert len(list(Path("kept").iterdir())) == 2


def test_what_is_kept_is_compared_reported_and_its_precision_known(cli: Cli, module: str, colours: Path) -> None:
    one, other = (
        evaluate(cli, f"{module}:{name}", colours, "--eps", "0.4", "--image-size", 12) for name in ("sized", "plain")
    )
    first, second = sorted(Path("evaluations").iterdir(), key=lambda place: "plain" in place.name)
    (row, *_) = apd.compare_runs([first, second])[0].rows
    assert (row.attack, row.a, row.b) == ("clean", one["clean"], other["clean"])
    assert {known.attack for known in apd.precision([first])} == {"clean", "pgd-2"}
    answer = cli("report", first, second, "--output", "both.html")
    assert answer.code == 0, answer.err
    answer = cli("report", first, "--output", "one.html")
    assert answer.code == 0, answer.err
    page = Path("one.html").read_text()
    told = json.loads(page.partition('id="apd-data">')[2].partition("</script>")[0])["runs"][0]
    assert told["summary"]["clean"] == one["clean"] and told["about"]["classifier"] == f"{module}:sized"
    assert f"apd evaluate --classifier {module}:sized" in page and "apd train" not in page and "prompts" not in page
    check_error(cli("report", first, "--curve", "--output", "one.html"), [str(first), "--curve"])
    for file in (first / "results").glob("outcomes-*"):
        file.unlink()
    check_error(cli("precision", first), [str(first), "--classifier"])


def test_two_processes_do_not_write_to_one_evaluation(cli: Cli, module: str, colours: Path) -> None:
    evaluate(cli, f"{module}:sized", colours)
    (place,) = Path("evaluations").iterdir()
    with FolderLock(place).held():
        answer = cli("evaluate", "--classifier", f"{module}:sized", "--data", colours, "--limit", 4)
    check_error(answer, [place.name])


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        ("broken", ["broken", "RuntimeError", "no weights here"]),
        ("odd", ["image_size", "--image-size"]),
        ("wide", ["7", "3"]),
        ("number", ["number", "int"]),
        ("missing", ["missing", "toy_factories"]),
    ],
)
def test_what_is_not_a_classifier_is_refused(
    cli: Cli, module: str, colours: Path, factory: str, told: list[str]
) -> None:
    size = () if factory == "odd" else ("--image-size", 12)
    answer = cli("evaluate", "--classifier", f"{module}:{factory}", "--data", colours, "--limit", 4, *size)
    check_error(answer, told)
    assert factory != "odd" or not Path("evaluations").exists()


def test_a_side_of_no_pixels_is_refused(colours: Path) -> None:
    """Not taken for one that was not given."""
    model = Mean()
    model.image_size = 12  # type: ignore[assignment]
    data = apd.load_data(colours).classes("base")
    assert apd.evaluate(model, data, attacks="clean", limit=2, quiet=True).image_size == 12
    with refused("image_size", "0"):
        apd.evaluate(model, data, attacks="clean", limit=2, image_size=0, quiet=True)
    with refused("image_size", "0"):
        apd.evaluate_classifier(model, data, folder=None, attacks="clean", limit=2, image_size=0, quiet=True)


def test_a_clip_model_alone_is_refused() -> None:
    with refused("PromptedCLIP"):
        apd.evaluate(apd.load_clip("glyphs"), apd.load_data("digits", shots=1), limit=2)


def test_what_comes_next_is_a_board(cli: Cli, module: str, colours: Path) -> None:
    arguments = ("--classifier", f"{module}:sized", "--data", colours, "--attack", "clean", "--limit", 4)
    assert cli("evaluate", *arguments).err.rstrip().endswith("Next: apd leaderboard evaluations")
    assert cli("evaluate", *arguments, "--folder", "kept here").err.rstrip().endswith("leaderboard 'kept here'")


def test_options_that_do_not_go_together_are_refused(cli: Cli, run: Path, colours: Path, tmp_path: Path) -> None:
    check_error(cli("evaluate", run, "--classifier", "a:b"), ["--classifier"])
    check_error(cli("evaluate", run, "--folder", tmp_path), ["--folder"])
    check_error(cli("evaluate", "--classifier", "a:b"), ["--data"])
    check_error(cli("evaluate", "--model", "glyphs", "--data", colours, "--image-size", 9), ["--image-size"])
    check_error(cli("evaluate", "--model", "glyphs", "--data", colours, "--save-images"), ["--save-images", "--folder"])
    check_error(cli("evaluate", "--classifier", "nowhere_at_all:f", "--data", colours), ["nowhere_at_all:f"])
    check_error(cli("evaluate", "--classifier", "my_models", "--data", colours), ["'my_models'", "package.module:name"])
    check_error(cli("evaluate", "--classifier", "shutil:copytre", "--data", colours), ["'copytre'", meant("copytree")])
    file = tmp_path / "model.pth.tar-5"
    torch.save({}, file)
    check_error(cli("evaluate", "--classifier", f"maple:{file}", "--data", colours), ["--model"])
    gone = ("--classifier", "maple:gone.pth.tar", "--model", "glyphs", "--data", colours)
    check_error(cli("evaluate", *gone), ["gone.pth.tar"])


class Mean(nn.Module):
    """Two classes: dark and bright."""

    def forward(self, x: Tensor) -> Tensor:
        level = x.mean(dim=(1, 2, 3))
        return torch.stack([-level, level - 1], dim=1)


def test_a_module_from_python_beside_zero_shot_clip(clip_folder: Path, tmp_path: Path) -> None:
    side = apd.load_clip(clip_folder).info.image_size
    pixels = torch.cat([torch.full((4, 3, side, side), 0.1), torch.full((4, 3, side, side), 0.9)])
    pair = (pixels, torch.tensor([0] * 4 + [1] * 4))
    data = apd.Dataset.from_tensors("grey", ["dark", "bright"], pair, pair)
    arguments = {"folder": tmp_path / "kept", "attacks": "pgd-1", "eps": "8/255", "checks": False, "split": "test"}
    result = apd.evaluate_classifier(Mean(), data, model=str(clip_folder), **arguments)  # type: ignore[arg-type]
    assert result.image_size == side and result.undefended is not None and result.clean == 100
    (place,) = (tmp_path / "kept").iterdir()
    assert place.name.startswith("Mean-")
    with refused(str(side), str(side + 2)):
        apd.evaluate_classifier(Mean(), data, model=str(clip_folder), image_size=side + 2, **arguments)  # type: ignore[arg-type]


def halved(x: Tensor) -> Tensor:
    return x / 2


def squared(x: Tensor) -> Tensor:
    return x * x


class Step:
    """A step of preprocessing that is no module."""

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def __call__(self, x: Tensor) -> Tensor:
        return (x * self.levels).round() / self.levels


class Holding(Mean):
    """Has a setting that is neither a weight nor a part."""

    def __init__(self, setting: Any) -> None:
        super().__init__()
        self.setting, self._cache = setting, object()


class Drawn(Mean):
    """Adds noise that is drawn once and is no part of the state."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.register_buffer("noise", torch.rand(3, generator=torch.Generator().manual_seed(seed)), persistent=False)


def through(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """A step of preprocessing that holds a model."""
    return lambda x: net(x)


def outer(net: nn.Module) -> Callable[[Tensor], Tensor]:
    step = through(net)
    return lambda x: step(x)


def listed(net: nn.Module) -> Callable[[Tensor], Tensor]:
    nets = [net]
    return lambda x: nets[0](x)


def by_default(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x, net=net: net(x)


def convolution(weight: float) -> nn.Module:
    layer = nn.Conv2d(3, 3, 1)
    nn.init.constant_(layer.weight, weight)
    nn.init.zeros_(layer.bias)
    return layer


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Drawn(0), Drawn(1)),
        (Preprocessed(Mean(), outer(convolution(1.0))), Preprocessed(Mean(), outer(convolution(2.0)))),
        (Preprocessed(Mean(), listed(convolution(1.0))), Preprocessed(Mean(), listed(convolution(2.0)))),
        (Preprocessed(Mean(), by_default(convolution(1.0))), Preprocessed(Mean(), by_default(convolution(2.0)))),
        (Preprocessed(Mean(), through(Holding(1))), Preprocessed(Mean(), through(Holding(5)))),
        (Holding(np.array(["a", "b"])), Holding(np.array(["a", "c"]))),
        (Holding(np.arange(9)[::-1]), Holding(np.arange(9))),
        (Preprocessed(Mean(), through(convolution(1.0))), Preprocessed(Mean(), through(convolution(2.0)))),
        (Holding(75), Holding(50)),
        (Holding(torch.zeros(2000)), Holding(torch.eye(1, 2000)[0].roll(1000))),
        (Holding(Step(8)), Holding(Step(16))),
        (Holding([halved]), Holding([squared])),
        (Holding(partial(torch.clamp, max=0.5)), Holding(partial(torch.clamp, max=0.25))),
        (Holding({"steps": [Mean()]}), Holding({"steps": [nn.Linear(2, 2)]})),
        (Preprocessed(Mean(), halved), Preprocessed(Mean(), squared)),
        (Preprocessed(Mean(), Step(8).__call__), Preprocessed(Mean(), Step(16).__call__)),
    ],
    ids=[
        "buffer",
        "inner closure",
        "list",
        "default",
        "attribute",
        "words",
        "reversed",
        "closure",
        "number",
        "tensor",
        "object",
        "function",
        "partial",
        "module",
        "preprocessing",
        "method",
    ],
)
def test_models_that_hold_other_settings_are_other_models(one: nn.Module, other: nn.Module) -> None:
    prints = [Subject.of(model).fingerprint for model in (one, deepcopy(one), other)]
    assert prints[0] == prints[1] != prints[2]


def clip_classifiers(clip: DualEncoder) -> dict[str, apd.PromptedCLIP]:
    """Classifiers by one CLIP model that differ in one thing."""
    names, templates = ["dark", "bright"], ["a photo of a {}."]
    first, second = (Prompts.initial(PromptSpec(text_tokens=2), clip, seed=seed) for seed in (0, 1))
    spec = first.spec.model_copy(update={"between": "rather"})
    words = Prompts.from_tensors(spec, clip.info, {name: t.detach() for name, t in first.state_dict().items()})
    return {
        "one": apd.PromptedCLIP(clip, first, names, templates),
        "prompts": apd.PromptedCLIP(clip, second, names, templates),
        "class name": apd.PromptedCLIP(clip, first, ["dark", "light"], templates),
        "template": apd.PromptedCLIP(clip, first, names, ["a photo of a {} thing."]),
        "words between": apd.PromptedCLIP(clip, words, names, templates),
    }


WRAPPERS: dict[str, Callable[[apd.PromptedCLIP], nn.Module]] = {
    "itself": lambda one: one,
    "frozen": lambda one: one.frozen(),
    "sequence": nn.Sequential,
    "preprocessed": lambda one: Preprocessed(one.frozen(), halved),
    "held": lambda one: Holding([one.frozen()]),
}


@pytest.mark.parametrize("other", ["prompts", "class name", "template", "words between"])
@pytest.mark.parametrize("wrapper", list(WRAPPERS))
def test_clip_classifiers_are_told_apart_however_they_are_wrapped(clip: DualEncoder, wrapper: str, other: str) -> None:
    """A frozen one has no weights of its own: outcomes of one run came back for another."""
    wrap, made = WRAPPERS[wrapper], clip_classifiers(clip)
    prints = [Subject.of(wrap(made[name])).fingerprint for name in ("one", "one", other)]
    assert prints[0] == prints[1] != prints[2]


def test_a_frozen_classifier_of_another_clip_or_in_half_precision(clip: DualEncoder) -> None:
    changed, half = deepcopy(clip), deepcopy(clip).bfloat16()
    next(changed.parameters()).data.view(-1)[0] += 1.0
    one, other, low = (apd.PromptedCLIP(each, None, ["dark", "bright"]).frozen() for each in (clip, changed, half))
    assert Subject.of(one).fingerprint != Subject.of(other).fingerprint
    with refused("float32", "bfloat16"):
        Subject.of(Preprocessed(low, halved))


class Brightness(apd.PromptedCLIP):
    """Does not ask its prompts."""

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = Mean()(x)
        return answers


def test_a_clip_classifier_with_answers_of_its_own_is_judged_by_these(clip: DualEncoder, tmp_path: Path) -> None:
    kinds = (apd.PromptedCLIP, Brightness, apd.PromptedCLIP, apd.PromptedCLIP)
    plain, subclass, hooked, patched = (kind(clip, None, ["dark", "bright"]) for kind in kinds)
    hooked.register_forward_hook(lambda _, given, answers: Mean()(given[0]))
    patched.forward = Mean().forward  # type: ignore[method-assign]
    pixels = torch.cat([torch.full((4, 3, 16, 16), 0.1), torch.full((4, 3, 16, 16), 0.9)])
    pair = (pixels, torch.tensor([0] * 4 + [1] * 4))
    data = apd.Dataset.from_tensors("grey", ["dark", "bright"], pair, pair)
    settings: dict[str, Any] = {"attacks": "pgd-2", "limit": "all", "quiet": True, "store": tmp_path}
    assert apd.evaluate(plain, data, **settings).clean < 100, "random weights know nothing"
    for classifier in (subclass, hooked, patched):
        assert apd.evaluate(classifier, data, **settings).clean == 100
        with refused(type(classifier).__name__):
            certify(classifier, data, sigma=0.1, quiet=True)
        with refused(type(classifier).__name__):
            evaluate_wording(classifier, data, changes="typos", attack="clean", quiet=True)


def test_zero_shot_clip_is_kept_where_it_is_asked_for(
    cli: Cli, clip_folder: Path, colours: Path, tmp_path: Path
) -> None:
    arguments = ("evaluate", "--model", clip_folder, "--data", colours, "--attack", "pgd-1", "--limit", 4)
    assert cli(*arguments, "--folder", tmp_path / "kept").code == 0
    (place,) = (tmp_path / "kept").iterdir()
    record = json.loads((place / "classifier.json").read_text())
    assert record["kind"] == "prompts" and record["model"]["source"] == str(clip_folder)


def test_one_command_evaluates_a_peer_s_tower(cli: Cli, colours: Path, tmp_path: Path) -> None:
    """TeCoA's checkpoints hold an image tower beside other things; FARE's are the tower alone."""
    save_open_clip(tmp_path / "base", seed=0)
    tower = bare(random_weights(30, 4, vision={**VISION}, text=TEXT))
    torch.save({"epoch": 9, "state_dict": {}, "vision_encoder_state_dict": tower}, tmp_path / "vitb32_eps4.pth.tar")
    torch.save(tower, tmp_path / "fare_eps_4.pt")
    found = []
    for file in ("vitb32_eps4.pth.tar", "fare_eps_4.pt"):
        name = f"{tmp_path / 'base'}+{tmp_path / file}"
        answer = cli("evaluate", "--model", name, "--data", colours, "--attack", "pgd-2", "--limit", 6, "--json")
        assert answer.code == 0, answer.err
        found.append(json.loads(answer.out))
    first, second = found
    assert first["attacks"]["pgd-2"]["accuracy"] == second["attacks"]["pgd-2"]["accuracy"]
    assert first["n"] == 6 and first["checks"]


@pytest.mark.parametrize("peer", ["CoOp", "MaPLe", "FAP"])
def test_one_command_evaluates_a_peer_s_prompts(
    peer: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["blue", "green grocer", "red panda"]
    monkeypatch.setattr(test_imported, "NAMES", names)
    made = random_weights(test_imported.CLIP_VOCABULARY, 3, TOWERS[1], TOWERS[0])
    weights: Weights = {name: value.half().float() for name, value in made.items()}
    torch.save(weights, tmp_path / "ViT-B-16.pt")
    learner = LEARNERS[peer](weights)
    file = learner.save(tmp_path / "model.pth.tar-5", True)
    for number, name in enumerate(names):
        (tmp_path / "data" / name.replace(" ", "_")).mkdir(parents=True)
        for copy in range(2):
            image = Image.new("RGB", (20, 20), (80 * number, 40 * copy, 90))
            image.save(tmp_path / "data" / name.replace(" ", "_") / f"{copy}.png")
    source, model = f"{learner.form}:{file}", tmp_path / "ViT-B-16.pt"
    found = evaluate(cli, source, tmp_path / "data", "--model", model, "--folder", tmp_path / "kept")
    assert list(found["attacks"]) == ["pgd-2"] and found["n"] == 3  # type: ignore[call-overload]
    assert found["undefended"] is not None and set(found["per_class"]) == set(names)  # type: ignore[call-overload]
    (record,) = (tmp_path / "kept").glob("*/classifier.json")
    assert json.loads(record.read_text())["classifier"] == source
