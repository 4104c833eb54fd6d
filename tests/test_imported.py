"""Prompt learners of CoOp's, MaPLe's and FAP's code: checkpoints of the same keys and shapes, against CLIP written out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import apd
from apd.models.foreign import openai
from apd.models.foreign.tokenizers import CLIP_VOCABULARY, clip_tokenizer
from apd.runs.folder import Run

from .command_line import Cli
from .plain_clip import TEXT, VISION, Weights, image_features, normalised, quick_gelu, random_weights, text_features
from .refusals import check_error, refused
from .test_foreign_towers import MEAN, STD, images
from .test_torch_files import Bomb

NAMES = ["Red_panda", "green grocer", "blue"]
WIDE, NARROW = 64, 64
TOWERS = {**VISION, "width": WIDE, "layers": 3}, {**TEXT, "width": NARROW, "layers": 3, "context_length": 77}


@pytest.fixture(scope="module")
def weights() -> Weights:
    made = random_weights(CLIP_VOCABULARY, 3, TOWERS[1], TOWERS[0])
    return {name: value.half().float() for name, value in made.items()}


@pytest.fixture(scope="module")
def model(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("model") / "ViT-B-16.pt"
    torch.save(weights, file)
    return file


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer() -> Iterator[None]:
    """Making the original tokenizer takes longer than anything else here, and nobody changes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai, "clip_tokenizer", functools.cache(clip_tokenizer))
        yield


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    file = tmp_path / "classes.txt"
    file.write_text("\n".join(NAMES) + "\n")
    return file


def tokenised(texts: list[str]) -> Tensor:
    """As `clip.tokenize`: 77 numbers per text, zeros after the end."""
    rows, tokenizer = torch.zeros(len(texts), 77, dtype=torch.long), openai.clip_tokenizer(77)
    for row, text in zip(rows, texts, strict=True):
        ids = torch.tensor(tokenizer(text)["input_ids"])
        row[: len(ids)] = ids
    return rows


def linear(seed: int, rows: int, columns: int) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(columns, rows).half().float()


class Learner:
    """What one of the three code bases saves, and the prompts as it computes them."""

    def __init__(
        self, weights: Weights, form: str, n: int, prefix: str, depth: int = 2, per_class: bool = False
    ) -> None:
        self.weights, self.form, self.n = weights, form, n
        generator = torch.Generator().manual_seed(11)

        def some(*shape: int) -> Tensor:
            return (torch.randn(shape, generator=generator) * 0.3).half().float()

        names = [name.replace("_", " ") for name in NAMES]
        self.ids = tokenised([f"{prefix} {name}." for name in names])
        embedding = weights["token_embedding.weight"][self.ids]
        ctx = some(len(NAMES), n, NARROW) if per_class else some(n, NARROW)
        self.state = {"ctx": ctx, "token_prefix": embedding[:, :1], "token_suffix": embedding[:, 1 + n :]}
        self.text, self.visual = [ctx], []
        if form == "coop":
            return
        proj = linear(1, WIDE, NARROW)
        self._add("proj", proj)
        self.visual = [proj(ctx)]
        for number in range(depth - 1):
            if form == "maple":
                own, mapped = some(n, NARROW), linear(20 + number, WIDE, NARROW)
                self.text, self.visual = [*self.text, own], [*self.visual, mapped(own)]
            else:
                own, mapped = some(n, WIDE), linear(20 + number, NARROW, WIDE)
                self.text, self.visual = [*self.text, mapped(own)], [*self.visual, own]
            self.state[f"compound_prompts_{'text' if form == 'maple' else 'image'}.{number}"] = own
            self._add(f"compound_prompt_projections.{number}", mapped)

    def _add(self, name: str, layer: torch.nn.Linear) -> None:
        self.state |= {f"{name}.{part}": value.detach() for part, value in layer.named_parameters()}

    def save(self, file: Path, whole: bool, dtype: torch.dtype = torch.float32) -> Path:
        """As dassl does; MaPLe's and FAP's trainers save the whole model."""
        state = {name: value.to(dtype) for name, value in self.state.items()}
        if whole:
            state = {f"prompt_learner.{name}": value for name, value in state.items()}
            state["image_encoder.conv1.weight"] = self.weights["visual.conv1.weight"]
        optimiser = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
        scheduler = {"successor": torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 3), "last_epoch": 3}
        content = {"state_dict": state, "epoch": 5, "optimizer": optimiser.state_dict(), "scheduler": scheduler}
        torch.save({**content, "val_result": None}, file)
        return file

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, C) as the code computes them."""
        words = torch.cat(
            [
                self.state["token_prefix"],
                self.state["ctx"].expand(len(NAMES), -1, -1),
                self.state["token_suffix"],
            ],
            dim=1,
        )
        text = text_features(self.weights, words, self.ids.argmax(dim=-1), 1, quick_gelu, self.text[1:])
        image = image_features(self.weights, normalised(x, MEAN, STD), 1, quick_gelu, self.visual)
        return self.weights["logit_scale"].exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T


LEARNERS: dict[str, Callable[[Weights], Learner]] = {
    "CoOp": lambda w: Learner(w, "coop", 4, "X X X X"),
    "CoOp with words": lambda w: Learner(w, "coop", 4, "a photo of a"),
    "CoOp per class": lambda w: Learner(w, "coop", 4, "X X X X", per_class=True),
    "MaPLe": lambda w: Learner(w, "maple", 2, "a photo of a"),
    "MaPLe in all blocks": lambda w: Learner(w, "maple", 2, "a photo of a", depth=3),
    "MaPLe in one block": lambda w: Learner(w, "maple", 2, "a photo of a", depth=1),
    "MaPLe from noise": lambda w: Learner(w, "maple", 3, "X X X"),
    "FAP": lambda w: Learner(w, "fap", 2, "a photo of a {}."),
    "FAP in all blocks": lambda w: Learner(w, "fap", 2, "a photo of a {}, a type of pet.", depth=3),
}


@pytest.mark.parametrize(
    ("case", "whole"), [*((case, False) for case in LEARNERS), *((case, True) for case in ("CoOp", "MaPLe", "FAP"))]
)
def test_imported_prompts_give_the_logits_of_their_code(
    case: str, whole: bool, weights: Weights, model: Path, classes: Path, tmp_path: Path
) -> None:
    learner = LEARNERS[case](weights)
    file = learner.save(tmp_path / "model.pth.tar-5", whole)
    run = apd.import_run(file, learner.form, model, classes, tmp_path / "run")
    x = images(4)
    classifier = apd.load_run(run.path)
    assert torch.allclose(classifier(x), learner.logits(x), atol=1e-5, rtol=1e-5)
    assert classifier.class_names == ("Red panda", "green grocer", "blue")
    assert run.manifest["imported"]["form"] == learner.form


def test_half_precision_checkpoints_are_read(weights: Weights, model: Path, classes: Path, tmp_path: Path) -> None:
    learner = LEARNERS["MaPLe"](weights)
    file = learner.save(tmp_path / "model.pth.tar", True, torch.float16)
    classifier = apd.load_run(apd.import_run(file, "maple", model, classes, tmp_path / "run").path)
    assert torch.allclose(classifier(images()), learner.logits(images()), atol=1e-5, rtol=1e-5)
    assert classifier.prompts is not None and classifier.prompts.spec.between == "of a"


def test_the_command_imports_and_its_run_is_evaluated(
    cli: Cli, weights: Weights, model: Path, classes: Path, tmp_path: Path
) -> None:
    file, run, data = (
        LEARNERS["FAP"](weights).save(tmp_path / "model.pth.tar-9", True),
        tmp_path / "run",
        tmp_path / "data",
    )
    for number, name in enumerate(NAMES):
        (data / name).mkdir(parents=True)
        for copy in range(2):
            Image.new("RGB", (20, 20), (80 * number, 40 * copy, 90)).save(data / name / f"{copy}.png")
    done = cli("import", file, "--form", "fap", "--model", model, "--classes", classes, "--output", run)
    assert done.code == 0, done.err
    assert "--data" in done.err and "autoattack" in done.err
    manifest = Run.open(run).manifest
    assert manifest["model"]["source"] == str(model) and manifest["prompts"]["between"] == "of a {}."
    assert (
        str(file) in (run / "README.md").read_text()
        and "epochs" not in (run / "README.md").read_text().split("settings")[0]
    )
    check_error(cli("evaluate", run), [str(run), "--data"])
    result = apd.evaluate_run(run, data=str(data), attacks="pgd-2", device="cpu", limit="all")
    assert result.n == 3 and set(result.attacks) == {"pgd-2"}
    again = cli("import", file, "--form", "fap", "--model", model, "--classes", classes, "--output", run)
    check_error(again, [str(run), "--overwrite"])


def test_a_checkpoint_with_code_is_refused_and_not_executed(
    cli: Cli, model: Path, classes: Path, tmp_path: Path
) -> None:
    mark, file = tmp_path / "executed", tmp_path / "model.pth.tar-1"
    torch.save({"state_dict": {"ctx": torch.ones(4, NARROW)}, "args": Bomb(mark)}, file)
    told = cli("import", file, "--form", "coop", "--model", model, "--classes", classes, "--output", tmp_path / "run")
    check_error(told, [str(file), "exec"])
    assert not mark.exists() and not (tmp_path / "run").exists()


def changed(**tensors: Any) -> Callable[[Learner], None]:
    return lambda learner: learner.state.update({name.replace("__", "."): value for name, value in tensors.items()})


def without(name: str) -> Callable[[Learner], None]:
    def spoil(learner: Learner) -> None:
        del learner.state[name]

    return spoil


WRONG: dict[str, tuple[str, str, Callable[[Learner], None], list[str], list[str]]] = {
    "another form": ("MaPLe", "coop", lambda _: None, NAMES, ["coop", "--form maple"]),
    "FAP as MaPLe": ("FAP", "maple", lambda _: None, NAMES, ["maple", "--form fap"]),
    "a form that is none": ("CoOp", "vpt", lambda _: None, NAMES, ["vpt", "coop", "maple", "fap"]),
    "fewer names": ("CoOp", "coop", lambda _: None, NAMES[:2], ["3", "2"]),
    "another order": ("CoOp", "coop", lambda _: None, [NAMES[1], NAMES[0], NAMES[2]], ["red panda", "green grocer"]),
    "another order later": ("MaPLe", "maple", lambda _: None, [NAMES[0], NAMES[2], NAMES[1]], ["blue"]),
    "other classes": ("FAP", "fap", lambda _: None, ["cat", "dog", "cow"], ["cat"]),
    "no context": ("CoOp", "coop", without("ctx"), NAMES, ["ctx"]),
    "a vector for a context": ("CoOp", "coop", changed(ctx=torch.ones(NARROW)), NAMES, ["ctx", f"({NARROW},)"]),
    "CoCoOp": (
        "CoOp",
        "coop",
        changed(meta_net__linear1__weight=torch.ones(4, WIDE)),
        NAMES,
        ["meta_net.linear1.weight"],
    ),
    "no map": (
        "MaPLe",
        "maple",
        without("compound_prompt_projections.0.weight"),
        NAMES,
        ["compound_prompt_projections.0.weight"],
    ),
    "no texts": ("MaPLe", "maple", without("token_suffix"), NAMES, ["token_suffix"]),
    "another model": ("CoOp", "coop", changed(token_suffix=torch.randn(3, 72, NARROW)), NAMES, ["ViT-B-16.pt"]),
    "a wider model": ("CoOp", "coop", changed(token_suffix=torch.randn(3, 72, 96)), NAMES, ["96", "64"]),
    "diverged": ("CoOp", "coop", changed(ctx=torch.full((4, NARROW), torch.nan)), NAMES, ["ctx", "finite"]),
    "a map of another width": (
        "MaPLe",
        "maple",
        changed(proj__weight=torch.ones(WIDE, 7)),
        NAMES,
        ["proj.weight", "7"],
    ),
    "a wider image tower": (
        "MaPLe",
        "maple",
        changed(proj__weight=torch.ones(48, NARROW), proj__bias=torch.ones(48)),
        NAMES,
        ["48"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case: str, weights: Weights, model: Path, tmp_path: Path) -> None:
    learner_name, form, spoil, names, told = WRONG[case]
    learner = LEARNERS[learner_name](weights)
    spoil(learner)
    file, listing = learner.save(tmp_path / "model.pth.tar-5", True), tmp_path / "names.txt"
    listing.write_text("\n".join(names))
    with refused(*told):
        apd.import_run(file, form, model, listing, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("image_encoder.VPT", torch.ones(2, WIDE), ["image_encoder.VPT", "another method"]),
        ("image_encoder.conv1.weight", None, ["another image tower", "ViT-B-16.pt", "MODEL+FILE"]),
    ],
)
def test_what_lies_beside_the_learner_is_not_passed_over(
    name: str, value: Tensor | None, told: list[str], weights: Weights, model: Path, classes: Path, tmp_path: Path
) -> None:
    """Prompts in the tower were dropped, and a tower tuned to be robust was taken for the plain one."""
    file = LEARNERS["MaPLe"](weights).save(tmp_path / "model.pth.tar-5", True)
    content = torch.load(file, weights_only=False)
    content["state_dict"][name] = 1.1 * content["state_dict"][name] if value is None else value
    torch.save(content, file)
    with refused(*told):
        apd.import_run(file, "maple", model, classes, tmp_path / "run")


@pytest.mark.parametrize(("given", "names"), [({"eps": "abc"}, ["--eps", "abc"]), ({"data": ""}, ["--data"])])
def test_what_evaluation_could_not_read_is_refused_first(
    given: dict[str, str], names: list[str], classes: Path, tmp_path: Path
) -> None:
    with refused(*names):
        apd.import_run(tmp_path / "missing", "coop", "missing", classes, tmp_path / "run", **given)


def test_a_coop_context_without_its_texts_is_taken_at_its_word(
    weights: Weights, model: Path, classes: Path, tmp_path: Path
) -> None:
    """Code that builds on CoOp's may save the context alone."""
    learner = LEARNERS["CoOp"](weights)
    logits = learner.logits(images())
    torch.save({"ctx": learner.state["ctx"]}, tmp_path / "ctx.pth")
    run = apd.import_run(tmp_path / "ctx.pth", "coop", model, classes, tmp_path / "run")
    assert torch.allclose(apd.load_run(run.path)(images()), logits, atol=1e-5, rtol=1e-5)


def test_old_runs_keep_the_record_of_their_prompts() -> None:
    """The words between came later: where there are none, a run's record does not name them."""
    from apd.models.prompts import PromptSpec

    assert "between" not in PromptSpec().model_dump(mode="json")
    assert PromptSpec(**PromptSpec(between="of a").model_dump(mode="json")).between == "of a"
