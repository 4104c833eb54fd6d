"""Exports give the logits of the original at any batch size, are whole or not there, and run without this package."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import apd
from apd.attacks import AttackBatch, find
from apd.attacks.threat import ThreatModel
from apd.data.decode import to_rgb
from apd.export import check
from apd.export.place import Place
from apd.models import DualEncoder
from apd.models.classifier import PromptedCLIP
from apd.models.prompts import Prompts, PromptSpec
from apd.predict import predict_files
from apd.util.extras import install_command

from .command_line import Cli, call
from .models import save_clip
from .refusals import check_error, contains, refused
from .toys import toy_clip

PAGE = Path(__file__).resolve().parents[1] / "docs" / "deploying.md"
Runner = Callable[[Tensor], Tensor]


def opened(path: Path, form: str) -> Runner:
    """The exported model, loaded by the library it is meant for."""
    if form == "torch":
        program: Runner = torch.export.load(path).module()
        return program
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


@pytest.fixture(scope="session", params=["onnx", "torch"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, trained: Path) -> dict[str, Any]:
    """What the command says of an export of the run on colours."""
    path = tmp_path_factory.mktemp("export") / f"colours.{'pt2' if request.param == 'torch' else 'onnx'}"
    answer = call("export", trained, "--to", request.param, "--output", path, "--json")
    assert answer.code == 0, answer.err
    said: dict[str, Any] = json.loads(answer.out)
    assert said["path"] == str(path)
    return said


@pytest.fixture(scope="session")
def original(trained: Path) -> PromptedCLIP:
    return apd.load_run(trained)


def test_the_command_says_how_far_the_export_agrees(exported: dict[str, Any]) -> None:
    assert exported["form"] in ("onnx", "torch") and exported["images"] == 200
    assert 0 <= exported["max_difference"] <= exported["tolerance"] == 1e-4
    assert exported["same_class"] == 100.0 and exported["batch_sizes"] == [1, 7, 64]
    assert re.fullmatch(r"\d+ images of colours and \d+ random images", exported["image_source"])
    assert exported["bytes"] == Path(exported["path"]).stat().st_size


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_logits_are_the_originals_at_any_batch_size(exported: dict[str, Any], original: PromptedCLIP, n: int) -> None:
    x = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(n))
    logits = opened(Path(exported["path"]), exported["form"])(x)
    torch.testing.assert_close(logits, original(x), rtol=0, atol=1e-4)


def test_images_that_fool_the_original_fool_the_export_alike(
    exported: dict[str, Any], original: PromptedCLIP, colours: Path
) -> None:
    data = apd.load_data(colours, shots="all").train.decode(original.encoder.info.preprocessing)
    x = data.pixels()
    labels = original(x).argmax(-1)
    found = find("pgd-10")(original.frozen(), AttackBatch(x, labels, data.ids), ThreatModel(16 / 255)).images
    wanted = original(found).argmax(-1)
    assert bool((wanted != labels).any()), "the attack fools nobody"
    assert torch.equal(opened(Path(exported["path"]), exported["form"])(found).argmax(-1), wanted)


def test_the_description_says_what_the_run_says(
    exported: dict[str, Any], original: PromptedCLIP, trained: Path
) -> None:
    about = json.loads(Path(exported["description"]).read_text())
    how = original.encoder.info.preprocessing
    assert tuple(about["class_names"]) == original.class_names
    assert about["input"]["shape"] == ["batch", 3, 16, 16] and about["input"]["range"] == [0.0, 1.0]
    assert {name: about["preprocessing"][name] for name in ("size", "resize", "mode")} == {
        "size": how.size,
        "resize": how.resize,
        "mode": how.mode,
    }
    assert about["preprocessing"]["mean"] == list(how.mean) and about["preprocessing"]["std"] == list(how.std)
    assert about["logit_scale"] == original.encoder.info.logit_scale
    assert about["temperature"] == apd.Run.open(trained).manifest["calibration"]["temperature"] != 1.0
    assert about["check"]["max_difference"] == exported["max_difference"]


def odd_images(folder: Path) -> Iterator[Path]:
    """Images whose colours depend on how they are made RGB, and one that lies on its side."""
    steps = np.linspace(0, 255, 24 * 16).reshape(16, 24).astype(np.uint8)
    grey = Image.fromarray(steps)
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds: dict[str, Image.Image] = {
        "clear.png": Image.merge("RGBA", (grey, grey.rotate(180), grey, grey)),
        "grey.png": Image.merge("LA", (grey.rotate(180), grey)),
        "deep.png": Image.fromarray(steps.astype(np.uint16) * 257 // 4),
        "deep.tif": Image.fromarray(steps.astype(np.uint16) * 200),
        "side.jpg": Image.merge("RGB", (grey, grey.rotate(180), Image.new("L", grey.size, 200))),
        "side.tif": Image.merge("RGB", (grey, grey.rotate(180), Image.new("L", grey.size, 200))),
    }
    for name, image in kinds.items():
        image.save(folder / name, **({"exif": turned} if name.startswith("side") else {}))
        yield folder / name


def test_the_module_for_open_clip_makes_images_rgb_as_in_training(tmp_path: Path) -> None:
    from apd.export.carried import prompted_open_clip

    files = [*odd_images(tmp_path)]
    for orientation in range(1, 9):  # beside an XResolution of text
        tags = struct.pack("<4sIHHHII", b"II*\0", 8, 2, 0x0112, 3, 1, orientation)
        tags += struct.pack("<HHI4sI", 0x011A, 2, 4, b"300\0", 0)
        with Image.open(files[0]) as image:
            image.convert("RGB").save(tmp_path / f"{orientation}.jpg", exif=b"Exif\0\0" + tags)
        files.append(tmp_path / f"{orientation}.jpg")
    for file in files:
        with Image.open(file) as image, Image.open(file) as again:
            assert np.array_equal(prompted_open_clip.to_rgb(image), to_rgb(again)), file


def test_the_script_of_the_page_answers_as_predict_does(
    exported: dict[str, Any], trained: Path, colours: Path, tmp_path: Path
) -> None:
    if exported["form"] != "onnx":
        pytest.skip("the script is for ONNX")
    (script,) = re.findall(r"```python\n(import json, sys\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert len([line for line in script.splitlines() if line.strip()]) <= 21
    (tmp_path / "classify.py").write_text(script)
    (tmp_path / "torch.py").write_text("raise ImportError('the script must not need torch')")
    photos = [*(colours / name / "003.png" for name in ("red", "green", "blue")), *odd_images(tmp_path)]
    command = [sys.executable, str(tmp_path / "classify.py"), exported["path"], *map(str, photos)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert answer.returncode == 0, answer.stderr
    rows = [row for answers in predict_files(trained, photos, top=1) for row in answers.rows]
    best = [row["classes"][0] for row in rows]
    lines = [
        f"{file}: {found['class']} {100 * found['probability']:.1f} %" for file, found in zip(photos, best, strict=True)
    ]
    assert answer.stdout.splitlines() == lines


def test_gradients_of_the_pixels_pass_through_the_torch_program(
    exported: dict[str, Any], original: PromptedCLIP
) -> None:
    if exported["form"] != "torch":
        pytest.skip("only torch's program has gradients")
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    program = opened(Path(exported["path"]), "torch")
    slopes = []
    for model in (program, original.frozen()):
        pixels = x.clone().requires_grad_()
        model(pixels)[:, 0].sum().backward()
        assert pixels.grad is not None
        slopes.append(pixels.grad)
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)


def test_an_existing_output_is_refused_and_replaced_on_request(cli: Cli, trained: Path, tmp_path: Path) -> None:
    place = tmp_path / "colours.pt2"
    place.write_text("mine")
    check_error(cli("export", trained, "--to", "torch", "--output", place), [str(place), "--overwrite"])
    assert place.read_text() == "mine"
    answer = cli(
        "export", trained, "--to", "torch", "--output", place, "--overwrite", "--measure", 4, "--attack", "pgd-1"
    )
    assert answer.code == 0, answer.err
    about = json.loads((tmp_path / "colours.pt2.json").read_text())
    difference, clean = about["check"]["max_difference"], about["price"]["clean"][1]
    assert contains(
        answer.out, str(place), f"{difference:.2g}", about["check"]["image_source"], "pgd-1", f"{clean:.1f} %"
    )
    assert place.read_bytes()[:2] == b"PK"
    assert {file.name for file in tmp_path.iterdir()} == {"colours.pt2", "colours.pt2.json"}


@pytest.mark.parametrize("holds", ["results/summary.json", "run.json"])
def test_a_folder_of_evaluations_is_never_replaced(tmp_path: Path, holds: str) -> None:
    folder = tmp_path / "kept"
    (folder / holds).parent.mkdir(parents=True)
    for name in (holds, "classifier.json"):
        (folder / name).write_text("{}")
    with refused(str(folder), "evaluations"), Place(folder, True).held(True):
        pass
    assert (folder / holds).is_file()


def test_other_logits_fail_and_what_was_there_stays(
    cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "colours.pt2").write_text("mine")
    (tmp_path / "colours.pt2.json").write_text("{}")
    monkeypatch.setattr("apd.export.exported.TOLERANCE", -1.0)
    answer = cli("export", trained, "--to", "torch", "--output", tmp_path / "colours.pt2", "--overwrite")
    assert (answer.code, answer.out) == (1, "")
    assert (tmp_path / "colours.pt2").read_text() == "mine" and (tmp_path / "colours.pt2.json").read_text() == "{}"
    assert {file.name for file in tmp_path.iterdir()} == {"colours.pt2", "colours.pt2.json"}


@pytest.mark.parametrize("bad", ["shape", "nan"])
def test_logits_of_another_shape_or_nan_fail(original: PromptedCLIP, bad: str) -> None:
    def wrong(x: Tensor) -> Tensor:
        return torch.zeros(len(x), 2) if bad == "shape" else torch.full((len(x), 3), float("nan"))

    with pytest.raises(apd.ApdError):
        check.compare(original, [wrong], torch.rand(64, 3, 16, 16), None)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_lower_precision_is_smaller_and_says_its_difference(trained: Path, tmp_path: Path, precision: str) -> None:
    small = apd.export.onnx(trained, tmp_path / "small.onnx", precision=precision, check_images=64)
    import onnx

    kept = [tensor.data_type for tensor in onnx.load(small.path).graph.initializer]
    assert kept.count({"float16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision]) > 20
    assert small.tolerance is None
    assert 0 < small.max_difference < 1 and small.same_class > 90
    logits = opened(small.path, "onnx")(torch.rand(2, 3, 16, 16))
    assert logits.dtype is torch.float32 and logits.shape == (2, 3)


def test_a_precision_that_a_form_does_not_have_is_refused(cli: Cli, trained: Path, tmp_path: Path) -> None:
    answer = cli("export", trained, "--to", "torch", "--precision", "int8", "--output", tmp_path / "x.pt2")
    check_error(answer, ["int8", "torch", "float32"])


def test_unknown_forms_and_options_are_refused(cli: Cli, trained: Path, tmp_path: Path) -> None:
    check_error(cli("export", trained, "--to", "onxx", "--output", tmp_path / "x.onnx"), ["onxx", "onnx"])
    with refused("opset"):
        apd.export.onnx(trained, tmp_path / "x.onnx", opset=9)
    with refused("int4"):
        apd.export.onnx(trained, tmp_path / "x.onnx", precision="int4")
    for wrong in (("--attack", "pgd-x"), ("--eps", "four"), ("--attack", "cw"), ("--attack", "transfer:zero-shot")):
        answer = cli("export", trained, "--to", "onnx", "--output", tmp_path / "x.onnx", "--measure", 3, *wrong)
        check_error(answer, [wrong[1]])
    clean = ("--measure", 3, "--attack", "clean")
    check_error(cli("export", trained, "--to", "onnx", "--output", tmp_path / "x.onnx", *clean), ["clean", "pgd-20"])
    for form, name in (("torch", "x.onnx"), ("onnx", "x")):  # torch loads none but .pt2 without a warning
        wanted = {"torch": "x.onnx.pt2", "onnx": "x.onnx"}[form]
        check_error(cli("export", trained, "--to", form, "--output", tmp_path / name), [form, wanted])
    for option, value, words in (
        ("--attack", "pgd-5", ["attack", "--measure"]),
        ("--eps", "4/255", ["eps", "--measure"]),
        ("--license", "mit", ["license", "huggingface"]),
    ):
        check_error(cli("export", trained, "--to", "onnx", "--output", tmp_path / "x.onnx", option, value), words)
    check_error(cli("export", tmp_path, "--to", "onnx", "--output", tmp_path / "x.onnx"), [str(tmp_path)])


def test_without_onnx_the_extra_is_named(
    cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    answer = cli("export", trained, "--to", "onnx", "--output", tmp_path / "x.onnx")
    check_error(answer, ["onnxscript", install_command("onnx")])


def test_images_that_are_gone_are_replaced_by_random_ones_and_that_is_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run / "config.yaml"
    config.write_text(re.sub(r"source: .*", f"source: {tmp_path / 'gone'}", config.read_text(), count=1))
    exported = apd.export.torch(run, tmp_path / "x.pt2", check_images=64)
    assert (exported.images, exported.image_source) == (64, "64 random images")


def test_other_class_names_through_the_text_program(trained: Path, original: PromptedCLIP, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    exported = apd.export.torch(trained, tmp_path / "open", open_vocabulary=True, check_images=64)
    about = json.loads((exported.path / "classifier.json").read_text())
    assert exported.description == exported.path / "classifier.json"
    assert about["output"] == {"name": "features", "shape": ["batch", original.encoder.info.embed_dim]}
    names = ["cat", "dog", "piano", "grand piano", "bright red"]
    texts = [about["text"]["templates"][0].format(name) for name in names]
    tokenizer = AutoTokenizer.from_pretrained(exported.path / "tokenizer")
    ids = torch.tensor(tokenizer(texts, padding="max_length", max_length=about["text"]["context_length"])["input_ids"])
    image, text = (torch.export.load(exported.path / f"{tower}.pt2").module() for tower in ("image", "text"))
    x = torch.rand(7, 3, 16, 16)
    logits = about["logit_scale"] * image(x) @ text(ids).T + about["logit_bias"]
    torch.testing.assert_close(logits, original.with_classes(names)(x), rtol=0, atol=1e-4)
    with refused("other files"):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "file").touch()
        apd.export.torch(trained, tmp_path / "mine", open_vocabulary=True, overwrite=True)


@pytest.fixture(scope="module")
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    """A CLIP or a SigLIP with a first and a later block: tracing takes seconds, and as many again for each further block."""
    return apd.load_clip(save_clip(tmp_path_factory.mktemp("few") / "model", request.param, depths=(2, 2)))


TOKENS, FRAME = PromptSpec(), PromptSpec(text_tokens=0, visual_tokens=0, frame=0.1)


@pytest.mark.parametrize(
    ("encoder", "spec", "frozen"),
    [("clip", TOKENS, False), ("clip", FRAME, True), ("siglip", TOKENS, True), ("siglip", FRAME, False)],
    ids=["clip-tokens", "clip-frame-frozen", "siglip-tokens-frozen", "siglip-frame"],
    indirect=["encoder"],
)
def test_classifiers_are_traced_with_a_free_batch_size(encoder: DualEncoder, spec: PromptSpec, frozen: bool) -> None:
    """Each two of model, prompts and frozen or not are met together: all three would be twice the traces."""
    prompts = Prompts.initial(spec, encoder, seed=1).requires_grad_(False)
    for strip in getattr(prompts, "strips", []):
        torch.nn.init.uniform_(strip, -0.2, 0.2)
    classifier = PromptedCLIP(encoder, prompts, ["cat", "dog", "piano"], ["a photo of a {}.", "the {}."])
    free = ({0: torch.export.Dim("batch", min=1)},)
    module = classifier.frozen() if frozen else classifier
    program = torch.export.export(module, (torch.rand(3, 3, 16, 16),), dynamic_shapes=free).module()
    for n in (1, 5):
        x = torch.rand(n, 3, 16, 16)
        torch.testing.assert_close(program(x), classifier(x), rtol=0, atol=1e-4)


def test_an_encoder_of_another_kind_is_traced(tmp_path: Path) -> None:
    classifier = PromptedCLIP(toy_clip(3), None, ["a", "b", "c"])
    free = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(classifier.frozen(), (torch.rand(3, 3, 8, 8),), dynamic_shapes=free).module()
    x = torch.rand(5, 3, 8, 8)
    np.testing.assert_allclose(program(x).numpy(), classifier(x).numpy(), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.testbed
def test_a_real_run_is_exported(testbed: Path, tmp_path: Path, cli: Cli) -> None:
    run, model = tmp_path / "run", testbed / "clip"
    train = ("train", testbed / "data" / "dtd10", "--model", model, "--shots", 1, "--epochs", 1)
    assert cli(*train, "--set", "method.teacher=frozen", "--output", run, "--device", "cpu").code == 0
    answer = cli("export", run, "--to", "onnx", "--output", tmp_path / "x.onnx", "--json")
    assert answer.code == 0, answer.err
    said = json.loads(answer.out)
    assert said["max_difference"] <= 1e-4 and said["image_source"] == "200 images of dtd10"
