"""Unlabelled images that do not fit in memory: decoded while training, to the same prompts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor

import apd
from apd.attacks import AttackSettings
from apd.attacks.persistent import Replayed
from apd.data import Decoded, load_data
from apd.data import streamed as module
from apd.data.streamed import GB, Streamed, in_parts, keep_or_stream
from apd.models import DualEncoder
from apd.models.preprocessing import Preprocessing
from apd.runs.config import load_config
from apd.settings.train import TrainSettings
from apd.training.batches import AHEAD, Batches, decode
from tests.models import save_colours
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("brief_teachers")

PREPROCESSING = Preprocessing(8, 8, "crop", "bicubic", (0.5,) * 3, (0.5,) * 3)
QUICK = {"epochs": 2, "batch_size": 4, "eps": "4/255", "checkpoint_every": 1, "device": "cpu", "attack": {"steps": 1}}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return save_colours(tmp_path / "photos", per_class=4, classes=("dark", "bright"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The files that are decoded while training, in the order in which threads begin."""
    found: list[object] = []
    read = module.read_image
    monkeypatch.setattr(module, "read_image", lambda source, to: found.append(source) or read(source, to))
    return found


def test_pixels_are_those_of_decoded_images_in_any_order(photos: Path) -> None:
    images = load_data(photos, shots="all").test
    kept, streamed = keep_or_stream(images, PREPROCESSING, 1), keep_or_stream(images, PREPROCESSING, 0)
    assert isinstance(kept, Decoded) and isinstance(streamed, Streamed)
    assert kept.ids == streamed.ids and torch.equal(kept.labels, streamed.labels) and len(streamed) == len(kept)
    index = torch.tensor([1, 0, 1])
    assert torch.equal(streamed.pixels(index), kept.pixels(index))
    assert streamed.pixels(index[:0]).shape == (0, 3, 8, 8)


def test_the_limit_is_on_the_decoded_bytes(photos: Path) -> None:
    images = load_data(photos, shots="all").test
    need = len(images) * 3 * 8 * 8 / GB
    assert isinstance(keep_or_stream(images, PREPROCESSING, need), Decoded)
    assert isinstance(keep_or_stream(images, PREPROCESSING, 0.99 * need), Streamed)


def test_an_image_is_decoded_once_however_often_it_is_expected(photos: Path, calls: list[object]) -> None:
    streamed = keep_or_stream(load_data(photos, shots="all").train, PREPROCESSING, 0)
    streamed.expect([0, 1])
    streamed.expect([1, 2])
    streamed.pixels(torch.tensor([0, 1, 2]))
    assert sorted(calls) == sorted(streamed.source.sources[:3])  # type: ignore[type-var, attr-defined]
    streamed.pixels(torch.tensor([0]))
    assert len(calls) == 4, "what was given is not kept"


def test_the_next_part_is_decoded_meanwhile(photos: Path) -> None:
    class Noting(Decoded):
        expected: ClassVar[list[list[int]]] = []

        def expect(self, index: Sequence[int]) -> None:
            self.expected.append(list(index))

    images = Noting(torch.zeros(5, 3, 2, 2, dtype=torch.uint8), torch.zeros(5), tuple("abcde"))
    parts = in_parts(images, 2)
    assert next(parts).tolist() == [0, 1] and images.expected == [[0, 1], [2, 3]]
    assert [part.tolist() for part in parts] == [[2, 3], [4]]


def test_batches_have_the_next_ones_decoded_across_epochs_and_none_after_the_last(
    shallow: DualEncoder, colours: Path, photos: Path, calls: list[object]
) -> None:
    data = load_data(colours, shots=1, unlabelled=photos, memory_gb=0)
    settings = TrainSettings(batch_size=3, epochs=2)
    batches = Batches(decode(shallow, data, False, False), settings)
    assert len(batches.pool) == 11 and len(batches) == 4
    streamed, seen = batches.pool.unlabelled, []
    assert isinstance(streamed, Streamed)
    for number in range(8):
        here = batches.draw(number, number).index.tolist()
        later = {
            i for next_one in range(number + 1, min(number + AHEAD + 1, 8)) for i in batches._order.chosen(next_one)
        }
        assert {i + 3 for i in streamed._ahead} == {i for i in later if i >= 3} - set(here)
        seen += here
    assert sorted(seen) == sorted([*range(11)] * 2) and len(calls) == 16


def test_replayed_batches_have_as_many_fewer_decoded(
    shallow: DualEncoder, colours: Path, photos: Path, calls: list[object]
) -> None:
    """Batches are counted, not optimiser steps, of which each batch has four."""
    data = load_data(colours, shots=1, unlabelled=photos, memory_gb=0)
    settings = TrainSettings(batch_size=3, steps=4, attack=AttackSettings(kind="free", replays=4))
    batches = Batches(decode(shallow, data, False, False), settings)
    moving = Replayed.from_settings(settings.attack)
    batches.hand_over(moving, settings.threat)
    batches.draw(0, 0)
    assert isinstance(batches.pool.unlabelled, Streamed) and not batches.pool.unlabelled._ahead


@pytest.mark.parametrize("method", ["apd", "advvlp", "advpt"])
def test_prompts_are_the_same_streamed_or_kept(
    tmp_path: Path, shallow: DualEncoder, colours: Path, photos: Path, method: str, calls: list[object]
) -> None:
    data = load_data(colours, shots=2, unlabelled=photos)
    streamed = replace(data, settings=data.settings.model_copy(update={"memory_gb": 0.0}))
    runs = [
        apd.train(shallow, each, method=method, output=tmp_path / name, **QUICK)
        for name, each in (("kept", data), ("streamed", streamed))
    ]
    assert calls and same(*(run.load_prompts() for run in runs))
    assert runs[0].manifest["data"] == runs[1].manifest["data"]
    assert runs[1].config.data.memory_gb == 0


def test_a_stopped_training_may_resume_with_another_limit(
    tmp_path: Path, shallow: DualEncoder, colours: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apd.training.loop import Loop

    def data(memory_gb: float) -> apd.Dataset:
        return load_data(colours, shots=2, unlabelled=photos, memory_gb=memory_gb)

    whole = apd.train(shallow, data(4), method="advvlp", output=tmp_path / "whole", **QUICK)
    own, count = Loop.train_batch, 0

    def stopping(self: Loop, *arguments: object) -> object:
        nonlocal count
        count += self.run is not None
        self.stop |= count == 3
        return own(self, *arguments)

    monkeypatch.setattr(Loop, "train_batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        apd.train(shallow, data(0), method="advvlp", output=tmp_path / "stopped", **QUICK)
    monkeypatch.undo()
    again = apd.train(shallow, data(4), method="advvlp", output=tmp_path / "stopped", resume=True, **QUICK)
    assert same(whole.load_prompts(), again.load_prompts())


def test_unreadable_images_are_found_before_training(photos: Path) -> None:
    """What a quick look at a JPEG misses counts too: pixels of no known range, and a shape that cannot be resized."""
    (photos / "dark" / "broken.jpg").write_bytes(b"not an image")
    Image.new("F", (9, 9)).save(photos / "dark" / "floats.tif")
    Image.new("RGB", (4_000_000, 1)).save(photos / "dark" / "thin.png")
    images = apd.data.load.load_unlabelled(str(photos))
    with refused("3", "11", "broken.jpg", "--skip-bad-images"):
        keep_or_stream(images, PREPROCESSING, 0)
    streamed, kept = (keep_or_stream(images, PREPROCESSING, room, skip_bad=True) for room in (0, 1))
    assert streamed.skipped == kept.skipped
    assert kept.skipped == tuple(f"unlabelled/dark/{name}" for name in ("broken.jpg", "floats.tif", "thin.png"))
    index = torch.arange(len(kept))
    assert streamed.ids == kept.ids and torch.equal(streamed.pixels(index), kept.pixels(index))
    for file in photos.rglob("*.png"):
        file.write_bytes(b"")
    with refused("11", "bright"):
        keep_or_stream(images, PREPROCESSING, 0, skip_bad=True)


def test_a_file_that_vanishes_while_training_is_named(photos: Path) -> None:
    streamed = keep_or_stream(load_data(photos, shots="all").train, PREPROCESSING, 0)
    shutil.rmtree(photos)
    with refused("photos", str(streamed.source.sources[0])):
        streamed.pixels(torch.tensor([0]))


def test_the_limit_is_on_record_only_where_it_is_set(colours: Path) -> None:
    for sets, known in ((["data.memory_gb=4"], False), (["data.memory_gb=8"], True)):
        record = load_config(flags={"data.source": str(colours)}, sets=sets).model_dump(mode="json")
        assert ("memory_gb" in record["data"]) == known
