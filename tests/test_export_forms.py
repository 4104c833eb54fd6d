"""Exports for transformers, the hub and open_clip: the same logits where prompts can be held, and refusals where not."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer

import apd
from apd.export import RobustCLIP
from apd.export.baked import PIPELINE_TEMPLATE
from apd.export.base import Form, Source
from apd.export.card import render_export_card
from apd.export.huggingface_form import HuggingFaceForm
from apd.export.open_clip_form import OpenClipForm
from apd.export.place import Place
from apd.export.settings import ExportSettings
from apd.models import DualEncoder
from apd.models.calibration import Calibration
from apd.predict import predict_files

from .command_line import Cli
from .exports import Make, random_run
from .refusals import check_error, contains, refused
from .runs import NAMES, TEMPLATES
from .test_card import evaluated

TEXT = {"text_tokens": 2, "visual_tokens": 0}
FRAME = {**TEXT, "frame": 0.2}
VISUAL = {"text_tokens": 2, "visual_tokens": 3, "visual_depth": 2}
QUICK = {"check_images": 64}


@pytest.fixture
def make(tmp_path: Path, clip: DualEncoder, siglip: DualEncoder) -> Make:
    """Makes a finished run with random prompts."""

    def run(prompts: dict[str, Any], family: str = "clip") -> Path:
        encoder = {"clip": clip, "siglip": siglip}.get(family) or apd.load_clip(family)
        return random_run(tmp_path / "runs" / family, encoder, prompts)

    return run


def pixels(n: int = 5) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", [HuggingFaceForm(), OpenClipForm()])
def test_a_tower_that_a_form_cannot_say_is_refused_first(form: Form, make: Make) -> None:
    run = apd.Run.open(make(VISUAL))
    classifier = apd.load_run(run.path)
    classifier.encoder.model.vision_model.pre_layrnorm = torch.nn.Identity()
    with refused("no_ln_pre", "--to onnx"):
        form.check(Source(run, classifier, ExportSettings()))


def test_open_clip_cannot_resize_by_every_filter(make: Make) -> None:
    """The folder was written, and open_clip failed on it with an empty message."""
    run = apd.Run.open(make(VISUAL))
    classifier = apd.load_run(run.path)
    info = classifier.encoder.info
    processing = replace(info.preprocessing, interpolation="lanczos")
    classifier.encoder.info = replace(info, preprocessing=processing)
    with refused("lanczos", "bicubic or bilinear", "--to onnx"):
        OpenClipForm().check(Source(run, classifier, ExportSettings()))


def test_a_model_of_the_hub_is_named_as_base_model(make: Make) -> None:
    run = apd.Run.open(make(TEXT))
    run.manifest["model"]["source"] = "openai/clip-vit-base-patch32"
    card = render_export_card(Source(run, apd.load_run(run.path), ExportSettings()), plain=True)
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "openai/clip-vit-base-patch32"


def test_the_card_says_which_attacks_see_no_gradients(make: Make) -> None:
    run = apd.Run.open(make(TEXT))
    score = {"accuracy": 50.0, "interval": [40.0, 60.0]}
    run.save_result(evaluated(attacks={"pgd-5": score, "square": score}, undefended=None))
    card = render_export_card(Source(run, apd.load_run(run.path), ExportSettings()), plain=True)
    (line,) = [line for line in card.splitlines() if "white-box" in line]
    assert "but for square," in line and "pgd-5" not in line


def test_the_card_says_what_was_classified(make: Make) -> None:
    run = apd.Run.open(make(TEXT))
    run.save_result(evaluated())
    run.save_result(evaluated(corruption="fog-5", classes="new", n=49))
    run.save_result(
        evaluated(split="val", n=48, checks=[{"name": "x", "passed": False, "value": 1.0, "message": "no"}])
    )
    card = render_export_card(Source(run, apd.load_run(run.path), ExportSettings()), plain=True)
    rows = [line.split(" | ") for line in card.splitlines() if " | clean | " in line]
    of = {"50": "colours", "49": "colours, new classes, corrupted by fog-5", "48": "colours, val"}
    assert {row[0] for row in rows} == {f"| {n} of {name}" for n, name in of.items()}
    assert len({row[-1] for row in rows}) == 2, "not all of them are reliable"
    index = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    assert {one["dataset"]["name"] for one in index} == {*of.values()}


@pytest.mark.parametrize("prompts", [TEXT, FRAME], ids=["text", "frame"])
def test_text_prompts_and_frames_are_baked_into_a_plain_model(
    make: Make, tmp_path: Path, prompts: dict[str, Any]
) -> None:
    from transformers import AutoTokenizer, CLIPModel

    run, folder = make(prompts), tmp_path / "plain"
    found = apd.export.huggingface(run, folder, **QUICK)
    assert found.max_difference <= 1e-4 and found.notes == ()
    original = apd.load_run(run)
    model, tokenizer = CLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    how = original.encoder.info.preprocessing
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (how.mean, how.std))
    for template in ("{}", PIPELINE_TEMPLATE, TEMPLATES[0]):
        texts = tokenizer([template.format(name) for name in NAMES], return_tensors="pt", padding=True)
        found = model(**texts, pixel_values=(pixels() - mean) / std).logits_per_image
        torch.testing.assert_close(found, original(pixels()), rtol=0, atol=1e-4)
    with pytest.raises(Exception, match="UNK"):
        tokenizer(["purple"])
    assert not torch.allclose(found, original.zero_shot()(pixels()), atol=1e-3), "the prompts make no difference"


def test_the_pipeline_of_transformers_gives_the_same_classes(make: Make, tmp_path: Path, colours: Path) -> None:
    from transformers import pipeline

    run, folder = make(FRAME), tmp_path / "plain"
    apd.export.huggingface(run, folder, **QUICK)
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    files = [colours / name / "004.png" for name in NAMES]
    rows = [row for answers in predict_files(run, files) for row in answers.rows]
    for file, row in zip(files, rows, strict=True):
        answer = classify(str(file), candidate_labels=NAMES)
        assert [entry["label"] for entry in answer] == [entry["class"] for entry in row["classes"]]
        for one, other in zip(answer, row["classes"], strict=True):
            assert one["score"] == pytest.approx(other["probability"], abs=0.01)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_visual_tokens_load_as_robust_clip_and_never_as_a_plain_model(make: Make, tmp_path: Path, family: str) -> None:
    from transformers import AutoModel

    run, folder = make(VISUAL, family), tmp_path / "prompted"
    found = apd.export.huggingface(run, folder, **QUICK)
    assert contains(found.notes[0], "3", "visual", "tokens")
    original, model = apd.load_run(run), RobustCLIP.from_pretrained(str(folder))
    torch.testing.assert_close(model(pixels()), original(pixels()), rtol=0, atol=1e-4)
    assert model.class_names == original.class_names
    weights = load_file(folder / "clip" / "model.safetensors")
    assert not any("text_model.encoder" in name for name in weights), "the text tower is left out"
    with pytest.raises(ValueError, match="trust_remote_code" if family == "clip" else "apd_prompted_clip"):
        AutoModel.from_pretrained(folder)
    with refused("--open-vocabulary"):
        model.with_classes(["cat", "dog"])


@pytest.mark.parametrize("class_specific", [False, True])
def test_an_open_vocabulary_keeps_the_text_tower_and_its_prompts(
    class_specific: bool, make: Make, tmp_path: Path
) -> None:
    run, folder = make({**VISUAL, "class_specific": class_specific}), tmp_path / "open"
    apd.export.huggingface(run, folder, open_vocabulary=True, **QUICK)
    original, model = apd.load_run(run), RobustCLIP.from_pretrained(str(folder))
    torch.testing.assert_close(model(pixels()), original(pixels()), rtol=0, atol=1e-4)
    names = ["cat", NAMES[1], "grand piano"]
    found = model.with_classes(names)(pixels())
    torch.testing.assert_close(found, original.with_classes(names)(pixels()), rtol=0, atol=1e-4)


def test_programs_for_an_open_vocabulary_hold_the_features_of_classes_with_a_context_each(
    make: Make, tmp_path: Path
) -> None:
    run, folder = make({**VISUAL, "class_specific": True}), tmp_path / "open"
    exported = apd.export.torch(run, folder, open_vocabulary=True, **QUICK)
    original, about = apd.load_run(run), json.loads((folder / "classifier.json").read_text())
    own = load_file(folder / about["text"]["own"])["features"]
    torch.testing.assert_close(own, original.bind_detached().classes)
    assert exported.max_difference < 1e-4
    image, text = (torch.export.load(folder / f"{tower}.pt2").module() for tower in ("image", "text"))
    names = ["cat", NAMES[1], "grand piano"]
    texts = [about["text"]["templates"][0].format(name) for name in names]
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    ids = torch.tensor(tokenizer(texts, padding="max_length", max_length=about["text"]["context_length"])["input_ids"])
    features = text(ids).detach()
    assert (features[1] - own[1]).norm() > 1e-3, "the program has the context of new names only"
    features[1] = own[1]
    logits = about["logit_scale"] * image(pixels()) @ features.T + about["logit_bias"]
    torch.testing.assert_close(logits, original.with_classes(names)(pixels()), rtol=0, atol=1e-4)
    # A text that leaves no room for the prompts does not fit, instead of losing its end.
    with pytest.raises(Exception, match=str(ids.shape[1])):
        text(torch.cat([ids, ids[:, -1:]], dim=1))


def test_images_of_any_size_are_classified(make: Make, tmp_path: Path, colours: Path) -> None:
    run, file = make(VISUAL), colours / "green" / "002.png"
    apd.Run.open(run).save_calibration(Calibration(0.5, 3, 0.2, 0.1))
    apd.export.huggingface(run, tmp_path / "x", **QUICK)
    model = RobustCLIP.from_pretrained(str(tmp_path / "x"))
    (answer,) = model.classify([Image.open(file)])
    (row,) = next(predict_files(run, [file])).rows
    assert list(answer) == [entry["class"] for entry in row["classes"]]
    assert list(answer.values()) == pytest.approx([entry["probability"] for entry in row["classes"]], abs=1e-5)
    assert model.classify([]) == []
    with refused("itself"):
        model.save_pretrained(tmp_path / "x")
    model.save_pretrained(tmp_path / "copy")
    assert RobustCLIP.from_pretrained(str(tmp_path / "copy")).class_names == model.class_names
    model.save_pretrained(tmp_path / "copy")
    config = tmp_path / "copy" / "config.json"
    config.write_text("{}")
    with refused(str(tmp_path / "copy"), "another model"):
        model.save_pretrained(tmp_path / "copy")
    for damaged in ("{", "[]"):
        config.write_text(damaged)
        with refused(str(config.parent), "config.json"):
            RobustCLIP.from_pretrained(str(tmp_path / "copy"))
    with refused(str(file), "is a file"):
        model.save_pretrained(file)
    with refused("'revison'", "revision"):
        RobustCLIP.from_pretrained(str(tmp_path / "x"), revison="v1")
    with refused("'device'", ".to(device)"):
        RobustCLIP.from_pretrained(str(tmp_path / "x"), device="cpu")
    with refused("itself"):
        model.save_pretrained(tmp_path / "x" / "within")
    for wrong in (Image.open(file), str(file), [str(file)], None, iter(())):
        with refused("list of PIL images"):
            model.classify(wrong)
    (tmp_path / "half.png").write_bytes(file.read_bytes()[:60])
    with refused("images[1]"):
        model.classify([Image.open(file), Image.open(tmp_path / "half.png")])
    with refused("apd export"):
        RobustCLIP.from_pretrained(str(run))


def test_the_card_carries_the_result_and_goes_to_the_hub(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = apd.evaluate_run(run, attacks=("pgd-2", "pgd-1"), eps="2/255", limit=6, checks=False)
    apd.export.huggingface(run, tmp_path / "x", license="mit", **QUICK)
    card = (tmp_path / "x" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert (header["library_name"], header["license"]) == ("apd", "mit") and "adversarial-robustness" in header["tags"]
    assert "base_model" not in header, "a folder of this machine means nothing on the hub"
    for file in (tmp_path / "x").glob("*.*"):
        assert str(tmp_path.parent.parent).encode() not in file.read_bytes(), file.name
    metrics = header["model-index"][0]["results"][0]["metrics"]
    attacked = [result.attacks["pgd-2"].accuracy, result.attacks["pgd-1"].accuracy, result.worst.accuracy]
    assert [metric["value"] for metric in metrics] == [round(value, 2) for value in (result.clean, *attacked)]
    assert "the worst of pgd-2 and pgd-1 for each image" in card and "worst" in metrics[-1]["name"]
    assert f"| {result.clean:.1f} |" in card and "2/255" in card

    uploads: list[dict[str, bytes]] = []

    class Api:
        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path: Path, **_: Any) -> str:
            files = [file for file in Path(folder_path).rglob("*") if file.is_file()]
            uploads.append({file.relative_to(folder_path).as_posix(): file.read_bytes() for file in files})
            return "done"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    RobustCLIP.from_pretrained(str(tmp_path / "x")).push_to_hub("me/colours")
    wanted = {file.relative_to(tmp_path / "x").as_posix() for file in (tmp_path / "x").rglob("*") if file.is_file()}
    assert set(uploads[0]) == wanted and uploads[0]["README.md"].decode() == card


class Refusing:
    """`os.replace` that fails once, the ``n``-th time it is called."""

    def __init__(self, n: int) -> None:
        self.left, self.replace = n, os.replace

    def __call__(self, *places: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, "disk is full")
        self.replace(*places)


def test_a_folder_is_replaced_whole_or_stays(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, folder = make(VISUAL), tmp_path / "exports" / "x"

    def state() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in folder.glob("*.*")}

    apd.export.huggingface(run, folder, **QUICK)
    first = state()
    with refused(str(folder), "--overwrite"):
        apd.export.huggingface(run, folder, **QUICK)
    with monkeypatch.context() as patch, refused("Cannot write"):
        # What was made is ready, the old folder goes aside, and then the new one does not come.
        put, replace = Place.put, Refusing(3)
        patch.setattr(Place, "put", lambda *given: (patch.setattr(os, "replace", replace), put(*given)))
        apd.export.huggingface(run, folder, overwrite=True, license="mit", **QUICK)
    assert replace.left == -1 and state() == first
    assert [file.name for file in folder.parent.iterdir()] == ["x"]
    apd.export.huggingface(run, folder, overwrite=True, license="mit", **QUICK)
    assert "license: mit" in (folder / "README.md").read_text() and state().keys() == first.keys()
    assert [file.name for file in folder.parent.iterdir()] == ["x"]


class Block(nn.Module):
    """A block under open_clip's names, from torch's own modules."""

    def __init__(self, width: int, heads: int, hidden: int, quick: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(OrderedDict(c_fc=nn.Linear(width, hidden), c_proj=nn.Linear(hidden, width)))
        self.quick = quick

    def forward(self, h: Tensor) -> Tensor:
        x = self.ln_1(h)
        h = h + self.attn(x, x, x, need_weights=False)[0]
        x = self.mlp.c_fc(self.ln_2(h))
        return h + self.mlp.c_proj(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


@pytest.mark.parametrize("prompts", [TEXT, FRAME, {"text_tokens": 0, "visual_tokens": 0, "frame": 0.2}])
def test_open_clip_weights_give_the_logits_of_torchs_own_modules(
    make: Make, tmp_path: Path, prompts: dict[str, Any]
) -> None:
    run, folder = make(prompts), tmp_path / "oc"
    found = apd.export.open_clip(run, folder, **QUICK)
    assert found.max_difference <= 1e-4
    config = json.loads((folder / "open_clip_config.json").read_text())
    state, seen = load_file(folder / "open_clip_model.safetensors"), config["model_cfg"]["vision_cfg"]
    width, heads = seen["width"], seen["width"] // seen["head_width"]
    hidden, quick = int(seen["mlp_ratio"] * width), config["model_cfg"]["quick_gelu"]
    blocks = nn.Sequential(*(Block(width, heads, hidden, quick) for _ in range(seen["layers"])))
    start = "visual.transformer.resblocks."
    blocks.load_state_dict({name.removeprefix(start): t for name, t in state.items() if name.startswith(start)})
    how = config["preprocess_cfg"]
    mean, std = (torch.tensor(how[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        h = F.conv2d((pixels() - mean) / std, state["visual.conv1.weight"], stride=seen["patch_size"])
        first = state["visual.class_embedding"].expand(len(h), 1, width)
        h = torch.cat([first, h.flatten(2).mT], dim=1) + state["visual.positional_embedding"]
        h = F.layer_norm(h, (width,), state["visual.ln_pre.weight"], state["visual.ln_pre.bias"])
        h = F.layer_norm(blocks(h)[:, 0], (width,), state["visual.ln_post.weight"], state["visual.ln_post.bias"])
        features = F.normalize(h @ state["visual.proj"], dim=-1)
        classes = load_file(folder / "class_features.safetensors")["class_features"]
        logits = state["logit_scale"].exp() * features @ classes.T
    torch.testing.assert_close(logits, apd.load_run(run)(pixels()), rtol=0, atol=1e-4)
    assert (len(found.notes) == 2) == (prompts["text_tokens"] > 0), found.notes


@pytest.mark.parametrize(("prompts", "family"), [(TEXT, "clip"), (FRAME, "clip"), (FRAME, "glyphs")])
def test_open_clip_itself_loads_the_folder(
    make: Make, tmp_path: Path, colours: Path, prompts: dict[str, Any], family: str
) -> None:
    open_clip = pytest.importorskip(
        "open_clip", reason="open_clip cannot be imported here; scripts/test_open_clip.sh", exc_type=ImportError
    )
    run, place = make(prompts, family), f"local-dir:{tmp_path / 'oc'}"
    apd.export.open_clip(run, tmp_path / "oc", **QUICK)
    model, _, preprocess = open_clip.create_model_and_transforms(place)
    original = apd.load_run(run)
    encoder, bound = original.encoder, original.bind_detached()
    side, how = encoder.info.image_size, encoder.info.preprocessing
    x = torch.rand(5, 3, side, side, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (how.mean, how.std))
    texts = [f"a photo of a {name}." for name in NAMES]
    ids = open_clip.get_tokenizer(place)(texts)
    square = Image.open(colours / NAMES[0] / "004.png").convert("RGB").resize((side, side))
    shown = torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255
    with torch.no_grad():
        image, text = model.encode_image((x - mean) / std), model.encode_text(ids)
        classes = load_file(tmp_path / "oc" / "class_features.safetensors")["class_features"]
        logits = model.logit_scale.exp() * F.normalize(image, dim=-1) @ classes.T
        compared = {
            "image features": (image, bound.embed(x)),
            "text features": (text, encoder.encode_text(encoder.prompt_ids(texts))),
            "logits": (logits, original(x)),
            "pixels": (preprocess(square), (shown - mean) / std),
        }
    for name, (theirs, ours) in compared.items():
        print(f"{family}, {name}: largest difference {float((theirs - ours).abs().max()):.2e}")
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4 if name == "logits" else 1e-5)


def test_open_clip_weights_are_read_back_with_their_prompts(make: Make, tmp_path: Path) -> None:
    run = make(FRAME)
    apd.export.open_clip(run, tmp_path / "oc", **QUICK)
    original = apd.load_run(run).bind_detached()
    torch.testing.assert_close(
        apd.load_clip(tmp_path / "oc").encode_image(pixels()), original.embed(pixels()), atol=1e-5, rtol=0
    )


def test_a_family_without_a_class_in_transformers_is_refused(make: Make, clip: DualEncoder) -> None:
    run, encoder = make(TEXT), copy.copy(clip)
    classifier = apd.load_run(run, encoder=encoder)
    encoder.info = replace(clip.info, family="clipa")
    with refused("clipa", "--to onnx"):
        HuggingFaceForm().check(Source(apd.Run.open(run), classifier, ExportSettings()))


@pytest.mark.parametrize("form", ["huggingface", "open_clip", "torch"])
def test_the_embedded_clip_is_exported(make: Make, tmp_path: Path, form: str) -> None:
    run = make(FRAME, "glyphs")
    found = getattr(apd.export, form)(run, tmp_path / ("x.pt2" if form == "torch" else "x"), **QUICK)
    assert found.max_difference <= 1e-4 and found.same_class == 100.0


@pytest.mark.parametrize(("prompts", "family"), [(VISUAL, "siglip"), (TEXT, "siglip")])
def test_open_clip_refuses_what_it_cannot_hold(
    make: Make, tmp_path: Path, cli: Cli, prompts: dict[str, Any], family: str
) -> None:
    answer = cli("export", make(prompts, family), "--to", "open_clip", "--output", tmp_path / "oc")
    check_error(answer, ["open_clip", "--to onnx"])
    assert not (tmp_path / "oc").exists()


def test_the_price_is_measured_on_the_runs_test_images(trained: Path, tmp_path: Path, cli: Cli) -> None:
    options = ("--measure", 6, "--attack", "pgd-3", "--eps", "8/255")
    answer = cli("export", trained, "--to", "torch", "--output", tmp_path / "x.pt2", *options, "--json")
    assert answer.code == 0, answer.err
    price = json.loads(answer.out)["price"]
    wanted = apd.evaluate_run(
        shutil.copytree(trained, tmp_path / "run"),
        attacks=("pgd-3",),
        eps="8/255",
        limit=6,
        checks=False,
        control=False,
    )
    assert (price["images"], price["attack"], price["eps"]) == (6, "pgd-3", "8/255")
    assert price["clean"] == [wanted.clean] * 2
    assert price["adversarial"] == [wanted.attacks["pgd-3"].accuracy] * 2 and price["same_class"] == 100.0
    assert json.loads((tmp_path / "x.pt2.json").read_text())["price"] == price


def test_the_price_is_measured_without_images_that_cannot_be_read(
    run: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = shutil.copytree(colours, tmp_path / "photos")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"].update(source=str(photos))
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    test = apd.load_data(photos, shots=1).test
    Path(str(test.sources[0])).write_bytes(b"no image")
    found = apd.export.torch(run, tmp_path / "x.pt2", measure=len(test), attack="pgd-1")
    assert found.price is not None and found.price.images == len(test) - 1
    photos.rename(tmp_path / "moved")
    monkeypatch.setattr(
        "apd.export.exported._written", lambda *_: pytest.fail("work before the images were looked for")
    )
    with refused(str(photos)):
        apd.export.torch(run, tmp_path / "y.pt2", measure=2)
