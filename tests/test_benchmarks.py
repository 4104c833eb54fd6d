"""The benchmark's own code: both sides of a comparison compute the same, and the floor is no more than it must be."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import apd
from apd.data.batch import Batch
from apd.data.dataset import Decoded
from apd.methods import Step
from apd.models.fast import kernels
from apd.models.prompts import Prompts
from benchmarks import growth
from benchmarks.cases import Options
from benchmarks.evaluation import Subject, attack_case, foolbox_pgd, pyautoattack, same_logits, twins
from benchmarks.flops import counted, formulas
from benchmarks.geometry import CONTEXT, GEOMETRIES, class_names, cut_length, save
from benchmarks.growth import lacks_memory
from benchmarks.profile import OPERATORS, PARTS, profile_ours, profile_published
from benchmarks.startup import FIRST_STEP, photos
from benchmarks.step import THREAT, Problem, floor, ours, problem, published
from benchmarks.step_rows import FLOORS, method_settings, predicted
from benchmarks.towers import Towers

from .forked import Forked

MINI = GEOMETRIES["mini"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(MINI, tmp_path_factory.mktemp("models") / "mini")


def build(folder: Path, kind: str, batch: int = 3, classes: int = 12, dtype: torch.dtype = torch.float32) -> Problem:
    encoder = apd.load_clip(folder, dtype=dtype)
    p = problem(encoder, Towers.load(folder, encoder, dtype), *method_settings(kind, MINI), batch, classes)
    return replace(p, method=p.method.to(dtype), x=p.x.to(dtype))


def gradients(p: Problem) -> dict[str, Tensor]:
    return {name: q.grad.clone() for name, q in p.method.named_parameters() if q.grad is not None}


def test_ours_and_the_published_step_agree_on_the_same_adversarial_images(folder: Path) -> None:
    p = build(folder, "fap")
    x_adv = THREAT.random_start(p.x, torch.arange(3) + 7)
    theirs = published(p, x_adv)
    wanted = gradients(p)
    p.method.zero_grad()
    loss = sum(p.method.loss(Step(Batch.of(p.x, p.labels), p.method.student.bind()), x_adv).values())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(theirs), rel=1e-5)
    assert wanted.keys() == gradients(p).keys() and wanted
    for name, gradient in gradients(p).items():
        assert float((gradient - wanted[name]).norm()) <= 1e-5 * float(wanted[name].norm()), name


def test_a_whole_step_agrees_in_float64(folder: Path) -> None:
    p = build(folder, "fap", dtype=torch.float64)
    theirs, wanted = published(p), gradients(p)
    mine = ours(p)()
    assert float(mine) == pytest.approx(float(theirs), rel=1e-9)
    for name, gradient in gradients(p).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-7, atol=1e-10)
    assert float(published(p, own_kernels=True)) == pytest.approx(float(theirs), rel=1e-9), "other kernels, same step"


def test_towers_are_the_encoder_s(folder: Path) -> None:
    p = build(folder, "fap")
    encoder, prompts = p.method.student.encoder, p.prompts
    with torch.no_grad():
        for towers in (p.bare(False), p.bare(True)):
            for mine, theirs in (
                (encoder.encode_image(p.x, prompts.visual()), towers.image(p.x, prompts.visual())),
                (encoder.encode_image(p.x), towers.image(p.x)),
                (encoder.encode_text(p.ids(), prompts.text()), towers.text(p.ids(), prompts.text())),
            ):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", FLOORS)
def test_passes_are_counted_right(folder: Path, kind: str) -> None:
    """The floor does the passes that it claims, ours no more than those."""
    p = build(folder, kind)
    ours(p)()  # what is computed once a run
    bare, mine = counted(floor(p, **FLOORS[kind][0])), counted(ours(p))
    # A prediction takes the backward of attention for one forward, and leaves out projections.
    assert bare == pytest.approx(predicted(kind, MINI, 3, 12)[0], rel=0.05)
    assert 0.4 * bare < mine <= bare, "ours shares prefixes and leaves out rows, and does all else"
    with patch.object(kernels, "_onednn", return_value=False):
        assert counted(ours(p)) == mine, "by torch's own formulas"
    assert counted(floor(p, **FLOORS[kind][0], own_kernels=False)) == bare
    assert counted(floor(p, **FLOORS[kind][0]), shapes_only=True) == bare


def test_the_published_step_multiplies_as_often_as_its_formula_says(folder: Path) -> None:
    batch, classes, passes = 3, 12, 6
    p = build(folder, "fap", batch, classes)
    image, text = batch * MINI.image_gflop(2), classes * MINI.text_gflop(CONTEXT)
    rows = (MINI.image_size // MINI.patch) ** 2
    patches = 2 * batch * rows * 3 * MINI.patch**2 * MINI.visual_width / 1e9
    attention = batch * MINI.visual_depth * MINI.visual_width * (rows + 3) ** 2
    attention = 4 * (attention + classes * MINI.text_depth * MINI.text_width * CONTEXT**2) / 1e9
    projections = 2 * MINI.embed_dim * (batch * MINI.visual_width + classes * MINI.text_width) / 1e9
    logits = 2 * batch * classes * MINI.embed_dim / 1e9
    coupling = 2 * 2 * MINI.text_width * MINI.visual_width * len(p.prompts.text()) / 1e9
    forward = image + text + projections + logits + coupling
    # Backward: attention recomputes its scores, logits and coupling have two factors that take gradients, pixels take
    # theirs in the attack's two steps only.
    backward = image - patches + text + 1.5 * attention + projections + 2 * (logits + coupling)
    wanted = passes * (forward + backward) + 2 * patches
    assert counted(lambda: published(p), shapes_only=True) == pytest.approx(wanted, rel=1e-12)
    p.method.zero_grad()
    assert counted(lambda: published(p, own_kernels=True)) == pytest.approx(wanted, rel=1e-12)
    assert predicted("fap", MINI, batch, classes)[1] == pytest.approx(wanted, rel=0.15)


def test_no_product_of_a_step_goes_uncounted(folder: Path) -> None:
    class Names(TorchDispatchMode):
        seen: ClassVar[set[Any]] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.add(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    p, online = build(folder, "fap", 2, 3), build(folder, "apd-online", 2, 3)
    with Names():
        for step in (ours(p), ours(replace(p, bf16=True)), ours(online), lambda: published(p)):
            step()
    products = {op for op in Names.seen if re.search(r"mm|conv|linear|attention|matmul|einsum|dot", str(op))}
    assert len(products) >= 6 and products <= {*flop_registry, *formulas()}


def test_attention_counts_as_its_products() -> None:
    q, k, v = (torch.rand(2, 3, 5, 8) for _ in range(3))
    with sdpa_kernel(SDPBackend.MATH):
        products = counted(lambda: F.scaled_dot_product_attention(q, k, v))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert counted(lambda: F.scaled_dot_product_attention(q, k, v)) == products == 2 * 2 * 2 * 3 * 5 * 5 * 8 / 1e9


def test_class_names_are_different_and_cut_where_the_floor_says(folder: Path) -> None:
    assert len(set(class_names(10_000))) == 10_000
    encoder = apd.load_clip(folder)
    for count in (10, 30):
        ids = encoder.prompt_ids([f"{name}." for name in class_names(count)], 2)
        assert encoder.trim(ids).shape == (count, cut_length(2)) and cut_length(2) == 12


@pytest.mark.parametrize("kind", ["fap", "apd-online"])
def test_a_watched_step_is_the_step(folder: Path, kind: str) -> None:
    p = build(folder, kind)
    ours(p)()
    wanted = gradients(p)
    found = profile_ours(p)
    for name, gradient in gradients(p).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-7)
    texts, images = (1, 4) if kind == "fap" else (2, 4)
    assert found.calls == dict(zip(PARTS, (texts, texts, images, images), strict=True))
    assert all(seconds > 0 for seconds in found.seconds.values()) and found.operators.keys() == OPERATORS.keys()
    assert sum(found.operators.values()) <= 1.5 * found.total
    if kind == "fap":
        published(p)
        wanted = gradients(p)
        before = profile_published(p)
        assert set(before.calls.values()) == {6}
        for name, gradient in gradients(p).items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-7)


def test_libraries_attack_the_same_function(folder: Path) -> None:
    encoder = apd.load_clip(folder)
    prompts = Prompts.initial(apd.PromptSpec(text_tokens=2, visual_tokens=2), encoder).requires_grad_(False)
    classifier = apd.PromptedCLIP(encoder, prompts, class_names(10))
    beside = twins(classifier, Towers.load(folder, encoder))
    x = torch.rand(3, 3, 32, 32)
    same_logits(classifier, beside, x)
    with torch.no_grad():
        prompts.text_tokens[0].normal_()
    with pytest.raises(AssertionError, match="not close"):
        same_logits(classifier, beside, x)
    y = classifier(x).argmax(1)
    keeping = beside["floor"]
    for images in (foolbox_pgd(keeping, x, y, 1 / 255, 2), pyautoattack(keeping, x, y, 1 / 255, "apgd-ce")):
        assert images.shape == x.shape and float((images - x).abs().max()) <= 1 / 255 + 1e-6


def test_images_may_come_in_parts(folder: Path) -> None:
    encoder = apd.load_clip(folder)
    prompts = Prompts.initial(apd.PromptSpec(text_tokens=2, visual_tokens=2), encoder).requires_grad_(False)
    classifier = apd.PromptedCLIP(encoder, prompts, class_names(10))
    x = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        y = classifier(x.float() / 255).argmax(1)
    images = Decoded(x, y, tuple("abcde"))
    whole = Subject(classifier, twins(classifier, Towers.load(folder, encoder)), images, "1/255")
    with patch("benchmarks.evaluation.subject", return_value=whole):
        halves, one = (attack_case(Options(), "pgd-2", 5, 1, parts=parts).measure() for parts in (2, 1))
    assert halves["rounds"] == {"ours": 2, "reference": 0, "floor": 2} and halves["reference_s"] is None
    assert one["rounds"]["reference"] == one["rounds"]["floor_default_kernels"] == 1
    assert halves["robust_ours"] == one["robust_ours"], "the same images from the same starts"


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_a_lack_of_memory_is_told_from_other_errors(error: Exception, memory: bool) -> None:
    assert lacks_memory(error) == memory


def grow(small: dict[str, Any], large: dict[str, Any]) -> None:
    """Print both points, the second within 100 MB; for a process of its own."""
    fits = growth.measure(small)
    with patch("benchmarks.growth.memory_available", return_value=10**8):
        print(json.dumps([fits, growth.measure(large)]), flush=True)


def test_a_point_of_growth_has_seconds_and_memory_or_says_that_it_does_not_fit(folder: Path) -> None:
    small = {"folder": str(folder), "device": "cpu", "rounds": 1, "classes": 5, "batch": 2, "steps": 1, "depth": 2}
    process = Forked(grow, small, small | {"classes": 2000})
    fits, burst = json.loads(process.output.readlines()[-1])
    assert process.wait() == 0
    assert fits["ours_s"] > 0 and fits["peak_mb"] >= fits["memory_before_mb"] > 50
    assert burst["out_of_memory"] and "ours_s" not in burst


def first_step(words: list[str]) -> None:
    sys.argv = ["-c", *words]
    exec(FIRST_STEP, {})


def test_the_first_step_is_noticed(tmp_path: Path, folder: Path) -> None:
    data = photos(tmp_path / "photos", 2, 3, side=32)
    words = [
        "train",
        str(data),
        "--model",
        str(folder),
        "--shots",
        "1",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "r"),
    ]
    process = Forked(first_step, words)
    assert process.output.read().endswith("first step\n") and process.wait() == 0
