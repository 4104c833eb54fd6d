"""Training images that are made of two labelled ones each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import apd
from apd.data import load_data
from apd.data.cutmix import cutmix
from apd.data.dataset import UNKNOWN, Decoded
from apd.methods import Preparation
from apd.models import DualEncoder
from apd.runs.folder import Run
from apd.settings.train import TrainSettings
from apd.training.batches import Batches, decode
from apd.training.loop import Loop
from tests.command_line import Said
from tests.models import save_colours
from tests.refusals import refused

QUICK: dict[str, Any] = {"epochs": 1, "eps": "4/255", "device": "cpu", "attack": {"steps": 1}, "cutmix": 20}
METHOD = {"name": "apd", "prompts": {"text_tokens": 2, "visual_tokens": 2}}


def plain(count: int, size: int = 16) -> Decoded:
    """Images of one grey value each: their number."""
    values = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return Decoded(values.expand(-1, 3, size, size).clone(), torch.arange(count), tuple(map(str, range(count))))


def box_of(image: Tensor) -> tuple[int, int] | None:
    """Height and width of the smaller part's frame; None unless it is a filled rectangle of one value on another."""
    values = image[0].unique().tolist()
    assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
    for value in values:
        rows, columns = (image[0] == value).any(dim=1).nonzero(), (image[0] == value).any(dim=0).nonzero()
        frame = image[0][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        if (frame == value).all() and frame.shape[0] == frame.shape[1] and len(values) < 3:
            return frame.shape[0], frame.shape[1]
    return None


def test_each_image_is_one_with_a_square_of_another_of_any_size_and_place() -> None:
    mixed = cutmix(plain(6), 200, seed=3)
    assert (mixed.labels == UNKNOWN).all() and len(set(mixed.ids)) == 200
    boxes = [box_of(image) for image in mixed.images]
    assert None not in boxes
    shares = torch.tensor([box[0] * box[1] / 256 for box in boxes if box is not None])
    assert abs(shares.mean() - 0.5) < 0.06 and shares.min() < 0.05 and shares.max() > 0.9
    assert mixed.images[:, 0, 0, 0].unique().tolist() == list(range(6))
    assert mixed.images[:, 0, 15, 15].unique().tolist() == list(range(6))


def test_the_seed_draws_each_image_on_its_own() -> None:
    images = plain(5)
    assert torch.equal(cutmix(images, 30, 1).images[:10], cutmix(images, 10, 1).images)
    assert not torch.equal(cutmix(images, 10, 1).images, cutmix(images, 10, 2).images)


@pytest.mark.parametrize(("count", "there"), [(0, "there are none"), (1, "there is 1")])
def test_two_images_are_needed(count: int, there: str) -> None:
    with refused("train.cutmix=7", there):
        cutmix(plain(count), 7)


@pytest.mark.parametrize("memory_gb", [0.0, 4.0])
def test_batches_draw_labelled_unlabelled_and_mixed_images(
    shallow: DualEncoder, colours: Path, tmp_path: Path, memory_gb: float
) -> None:
    photos = save_colours(tmp_path / "photos", per_class=4, classes=("dark", "bright"))
    data = load_data(colours, shots=1, unlabelled=photos, memory_gb=memory_gb)
    settings = TrainSettings(batch_size=4, cutmix=7, augment={"enabled": False})
    images = decode(shallow, data, settings, skip_bad=False, show=False)
    assert images.unlabelled is not None and images.mixed is not None
    batches = Batches(images, settings)
    own, others = len(images.train), len(images.unlabelled)
    assert len(batches.pool) == own + others + 7
    kept = decode(shallow, load_data(colours, shots=1, unlabelled=photos), settings, False, False)
    assert isinstance(kept.unlabelled, Decoded) and kept.mixed is not None
    everything = torch.cat([kept.train.images, kept.unlabelled.images, kept.mixed.images]).float() / 255
    seen: list[int] = []
    for number in range(len(batches)):
        batch = batches.draw(number, number)
        assert batch.labelled is not None and torch.equal(batch.labelled, batch.index < own)
        assert torch.equal(batch.x, everything[batch.index])
        seen += batch.index.tolist()
    assert sorted(seen) == list(range(own + others + 7))


def test_a_run_learns_from_them_and_says_so(clip_folder: Path, colours: Path, tmp_path: Path, said: Said) -> None:
    data = load_data(colours, shots=2)
    run = apd.train(str(clip_folder), data, method=METHOD, output=tmp_path / "run", **QUICK)
    assert "20 more images, each made of two of the 6 labelled ones." in " ".join(said())
    assert "20 images made of two labelled ones each (CutMix)" in (run.path / "README.md").read_text()
    alone = apd.train(str(clip_folder), data, method=METHOD, output=tmp_path / "alone", **{**QUICK, "cutmix": 0})
    differ = [not torch.equal(a, b) for a, b in zip(_prompts(run), _prompts(alone), strict=True)]
    assert all(differ) and "CutMix" not in (alone.path / "README.md").read_text()
    assert apd.evaluate_run(run.path, attacks="pgd-2", limit=5).n == 5


def _prompts(run: Run) -> list[Tensor]:
    found = apd.load_run(run.path).prompts
    assert found is not None
    return list(found.state_dict().values())


def test_a_method_that_needs_labels_has_pseudo_labels_of_them(shallow: DualEncoder, colours: Path) -> None:
    from accelerate import Accelerator

    from apd.methods import find_method

    data, settings = load_data(colours, shots=2), TrainSettings(cutmix=6, epochs=1, batch_size=4, device="cpu")
    images = decode(shallow, data, settings, False, False)
    control = find_method("advvlp")
    bare = apd.PromptedCLIP(shallow, None, data.class_names, data.templates)
    loop = Loop(control(control.Settings(), bare), images, settings, Accelerator(cpu=True), None)
    seen: list[Preparation] = []
    with pytest.raises(KeyboardInterrupt):
        loop.stop = True
        loop.run_through(lambda: seen.append(loop.preparation()))
    assert len(seen) == 1 and (loop.batches.pool.labels != UNKNOWN).all() and len(loop.batches.pool) == 2 * 3 + 6


def test_an_attack_that_keeps_all_images_takes_none(colours: Path, tmp_path: Path) -> None:
    with refused("train.cutmix", "train.attack.kind=carried"):
        apd.train(
            "glyphs", load_data(colours, shots=1), output=tmp_path / "run", **{**QUICK, "attack": {"kind": "carried"}}
        )
