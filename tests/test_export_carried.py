"""Exports with visual tokens, loaded by the code that they carry: in transformers, and in open_clip where it is installed."""

from __future__ import annotations

import ast
import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import apd
from apd.attacks import find
from apd.attacks.evaluation import AttackBatch
from apd.attacks.threat import ThreatModel
from apd.errors import ApdError
from apd.export import carried
from apd.export.carried.modeling_prompted_clip import PromptedCLIPModel
from apd.export.carried.prompted_open_clip import centre, load, to_rgb
from apd.export.check import BATCH_SIZES, run_in_batches
from apd.models import DualEncoder
from apd.models.preprocessing import Preprocessing
from apd.predict import predict_files

from .exports import Make, random_run
from .refusals import refused
from .runs import NAMES

LARGE = {"std": 0.5}
"""A standard deviation with which the prompts change the logits."""
DEFAULT: dict[str, Any] = {"class_specific": False, **LARGE}
FEW = {"text_tokens": 2, "visual_tokens": 3, "visual_depth": 1, **LARGE}
FRAMED = {"text_tokens": 0, "visual_tokens": 2, "frame": 0.2, **LARGE}
CASES = {"default": DEFAULT, "few": FEW, "frame": FRAMED}
ENTRIES = (carried.TRANSFORMERS, carried.OPEN_CLIP)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, clip: DualEncoder, colours: Path) -> Make:
    """Makes a finished run with random prompts, large enough to change the classes."""
    return lambda prompts: random_run(tmp_path_factory.mktemp("run") / "run", clip, prompts, str(colours))


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what transformers copies of a folder's code out of the user's cache."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)


def pixels(n: int = 64) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def adversarial(run: Path, x: Tensor) -> Tensor:
    """Images that PGD on the original moves away from its own answers."""
    original = apd.load_run(run).frozen()
    batch = AttackBatch(x, original(x).argmax(-1), tuple(str(i) for i in range(len(x))))
    return find("pgd-5")(original, batch, ThreatModel(16 / 255)).images


def check_equal(run: Path, exported: Any) -> None:
    """Compare logits at every batch size, and the classes of adversarial images."""
    original, x = apd.load_run(run), pixels()
    harmed = adversarial(run, x)
    with torch.no_grad():
        wanted, fooled = original(x), original(harmed)
        assert not torch.allclose(wanted, original.zero_shot()(x), atol=0.1), "the prompts make no difference"
    for size in BATCH_SIZES:
        torch.testing.assert_close(run_in_batches(exported, x, size), wanted, rtol=0, atol=1e-4)
    assert (fooled.argmax(-1) != wanted.argmax(-1)).any(), "the attack fools nothing"
    assert torch.equal(run_in_batches(exported, harmed, 64).argmax(-1), fooled.argmax(-1))


@pytest.mark.parametrize("name", ENTRIES)
def test_what_an_export_carries_imports_nothing_of_this_package(name: str) -> None:
    tree = ast.parse((Path(carried.__file__).parent / name).read_text())
    found = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name) or "."
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    roots = {module.partition(".")[0] for module in found} - set(sys.stdlib_module_names)
    brought = {"numpy", "PIL"}  # by open_clip
    assert roots - brought <= {"torch", "safetensors", "open_clip", "transformers"}


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_visual_tokens_with_the_code_of_the_folder(
    make: Make, tmp_path: Path, modules: None, case: str
) -> None:
    from transformers import AutoModel, AutoTokenizer

    run, folder = make(CASES[case]), tmp_path / "hf"
    found = apd.export.huggingface(run, folder, check_images=64)
    assert found.max_difference <= 1e-4 and found.same_class == 100.0
    assert json.loads((folder / "classifier.json").read_text())["code"] == carried.TRANSFORMERS
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__name__ == PromptedCLIPModel.__name__ and type(model) is not PromptedCLIPModel
    texts = AutoTokenizer.from_pretrained(folder)(NAMES, return_tensors="pt")
    how = apd.load_run(run).encoder.info.preprocessing
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (how.mean, how.std))
    check_equal(run, lambda x: model(**texts, pixel_values=(x - mean) / std).logits_per_image)


def test_the_pipeline_gives_the_same_classes_with_the_code_of_the_folder(
    make: Make, tmp_path: Path, modules: None, colours: Path
) -> None:
    from transformers import pipeline

    run, folder = make(DEFAULT), tmp_path / "hf"
    apd.export.huggingface(run, folder, check_images=64)
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    files = sorted(colours.rglob("*.png"))[:7]
    rows = [row for answers in predict_files(run, files) for row in answers.rows]
    for size in (1, 7):
        classify = pipeline(
            "zero-shot-image-classification", model=str(folder), trust_remote_code=True, batch_size=size
        )
        answers = classify([str(file) for file in files], candidate_labels=NAMES)
        for answer, row in zip(answers, rows, strict=True):
            assert [entry["label"] for entry in answer] == [entry["class"] for entry in row["classes"]]


def test_transformers_refuses_visual_tokens_without_trust(
    make: Make, tmp_path: Path, modules: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModel, CLIPModel, CLIPVisionModel, PreTrainedModel, pipeline

    run, folder = make(DEFAULT), tmp_path / "hf"
    apd.export.huggingface(run, folder, check_images=64)
    for trust in (None, False):
        with pytest.raises(ValueError, match="trust_remote_code"):
            AutoModel.from_pretrained(folder, trust_remote_code=trust)
    with pytest.raises(ValueError, match="trust_remote_code"):
        pipeline("zero-shot-image-classification", model=str(folder))
    # They make a CLIP of the published size, whose random weights take seconds and are never looked at.
    monkeypatch.setattr(PreTrainedModel, "initialize_weights", lambda _: None)
    for kind in (CLIPModel, CLIPVisionModel):
        with pytest.raises(RuntimeError, match="mismatched"):
            kind.from_pretrained(folder)
    with refused("auto_map"):
        apd.load_clip(folder)


def test_a_copy_of_the_model_has_tokens_of_its_own(make: Make, tmp_path: Path) -> None:
    apd.export.huggingface(make(DEFAULT), tmp_path / "hf", check_images=64)
    model = PromptedCLIPModel.from_pretrained(tmp_path / "hf")
    other = copy.deepcopy(model)
    with torch.no_grad():
        before = model.get_image_features(pixel_values=pixels(2)).pooler_output
        for tokens in other.visual_tokens:
            tokens.zero_()
        after = other.get_image_features(pixel_values=pixels(2)).pooler_output
        assert torch.equal(model.get_image_features(pixel_values=pixels(2)).pooler_output, before)
    assert not torch.allclose(before, after, atol=1e-3)


def test_the_check_covers_the_code_of_the_folder(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, folder = make(DEFAULT), tmp_path / "hf"
    monkeypatch.setattr("apd.export.carried.modeling_prompted_clip.VisualTokens.replace", lambda *_: None)
    with pytest.raises(ApdError, match=r"0\.0001"):
        apd.export.huggingface(run, folder, check_images=64)
    assert not folder.exists()


@pytest.mark.parametrize("case", CASES)
def test_open_clip_weights_hold_visual_tokens_and_are_checked(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    run, folder = make(CASES[case]), tmp_path / "oc"
    found = apd.export.open_clip(run, folder, check_images=64)
    assert found.max_difference <= 1e-4 and (folder / carried.OPEN_CLIP).is_file()
    with refused("visual.prompts.0"):
        apd.load_clip(folder)
    if case == "default":
        monkeypatch.setattr("apd.export.open_clip_form._with_tokens", lambda h, *_: h)
        with pytest.raises(ApdError, match=r"0\.0001"):
            apd.export.open_clip(run, tmp_path / "other", check_images=64)
        assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("size", [(50, 31), (31, 50), (64, 48), (500, 375), (23, 20), (20, 20)])
def test_the_carried_crop_is_the_run_s(size: tuple[int, int]) -> None:
    how = Preprocessing(16, 20, "crop", "bicubic", (0.5,) * 3, (0.5,) * 3)
    photo = Image.effect_noise(size, 60).convert("RGB")
    shown = centre(how.size, photo.resize(how.resized(*size), Image.Resampling.BICUBIC))
    assert shown.tobytes() == how.apply(photo).tobytes()


@pytest.mark.parametrize("case", CASES)
def test_open_clip_itself_loads_visual_tokens_with_the_code_of_the_folder(
    make: Make, tmp_path: Path, colours: Path, case: str
) -> None:
    open_clip = pytest.importorskip(
        "open_clip", reason="open_clip cannot be imported here; scripts/test_open_clip.sh", exc_type=ImportError
    )
    run, folder = make(CASES[case]), tmp_path / "oc"
    apd.export.open_clip(run, folder, check_images=64)
    with pytest.raises(RuntimeError, match=r"visual\.prompts\.0"):
        open_clip.create_model_and_transforms(f"local-dir:{folder}")
    scope: dict[str, Any] = {"__file__": str(folder / carried.OPEN_CLIP), "__name__": "prompted_open_clip"}
    exec(compile((folder / carried.OPEN_CLIP).read_text(), scope["__file__"], "exec"), scope)
    model, preprocess, classes, names = scope["load"]()
    assert names == NAMES and all(torch.equal(p, q) for p, q in zip(classes, load(folder)[2], strict=True))
    how = apd.load_run(run).encoder.info.preprocessing
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (how.mean, how.std))

    def logits(x: Tensor) -> Tensor:
        return model.logit_scale.exp() * model.encode_image((x - mean) / std, normalize=True) @ classes.T

    check_equal(run, logits)
    files = sorted(colours.rglob("*.png"))
    rows = [row for answers in predict_files(run, files) for row in answers.rows]
    with torch.no_grad():
        shown = torch.stack([preprocess(Image.open(file)) for file in files])
        found = model.encode_image(shown, normalize=True) @ classes.T
    assert [names[i] for i in found.argmax(-1).tolist()] == [row["classes"][0]["class"] for row in rows]


@pytest.mark.parametrize("pixels", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 70000, np.int32)])
def test_carried_code_refuses_pixels_of_unknown_range_as_the_run_does(pixels: Any) -> None:
    """The first became black, the second wrapped around."""
    with pytest.raises(ValueError, match="16 bits"):
        to_rgb(Image.fromarray(pixels))
    grey = to_rgb(Image.fromarray(np.full((4, 4), 32896, np.uint16)))
    assert grey.getpixel((0, 0)) == (128, 128, 128)
