"""Batches with a fixed share of labelled images: what is in them, and where a share is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import apd
from apd.data import load_data
from apd.models import DualEncoder
from apd.settings.train import TrainSettings
from apd.training.batches import Batches, TrainingImages
from apd.training.order import Order
from apd.training.pool import Pool
from tests.command_line import Said
from tests.refusals import contains, refused
from tests.toys import decoded

QUICK = {
    "epochs": 1,
    "eps": "4/255",
    "validate_every": 2,
    "checkpoint_every": 1,
    "device": "cpu",
    "attack": {"steps": 1},
}
METHOD = {"name": "apd", "prompts": {"text_tokens": 2, "visual_tokens": 2}}


def order(own: int, others: int, share: float | None, size: int, at_least: int = 1) -> Order:
    named = TrainSettings(batch_size=size, labelled_share=share)
    more = decoded(others, 2)
    more = replace(more, ids=tuple(f"more/{id_}" for id_ in more.ids))
    return Order(Pool(decoded(own, 2), more), named, at_least)


@pytest.mark.parametrize(
    ("own", "share", "size", "count"), [(6, 0.25, 8, 2), (6, 0.5, 8, 4), (2, 0.75, 8, 2), (6, 0.01, 8, 1)]
)
def test_every_full_batch_has_the_share_and_an_epoch_passes_over_the_unlabelled(
    own: int, share: float, size: int, count: int
) -> None:
    batches = order(own, 24, share, size)
    for epoch in range(3):
        drawn = [batches.chosen(epoch * len(batches) + i) for i in range(len(batches))]
        for batch in drawn[:-1]:
            assert len(batch) == size and sum(i < own for i in batch) == count
        assert sorted(i for batch in drawn for i in batch if i >= own) == list(range(own, own + 24))


def test_labelled_images_come_round_equally_often_without_a_break_between_epochs() -> None:
    batches = order(5, 12, 0.5, 8)
    drawn = Counter(i for number in range(10 * len(batches)) for i in batches.chosen(number) if i < 5)
    assert max(drawn.values()) - min(drawn.values()) <= 1


@pytest.mark.parametrize(("own", "others", "share", "size"), [(5, 12, 0.5, 8), (3, 7, 0.5, 4), (7, 33, 0.6, 10)])
def test_no_image_is_twice_in_a_batch_however_rounds_and_batches_meet(
    own: int, others: int, share: float, size: int
) -> None:
    batches = order(own, others, share, size)
    drawn = [batches.chosen(number) for number in range(60)]
    assert all(len(set(batch)) == len(batch) for batch in drawn)
    labelled = [i for batch in drawn for i in batch if i < own]
    for turn in range(len(labelled) // own):
        assert sorted(labelled[turn * own : (turn + 1) * own]) == list(range(own)), "each once in a round"


def test_a_batch_follows_from_its_number_alone() -> None:
    one = order(7, 33, 0.6, 10)
    drawn = [one.chosen(number) for number in range(3000)]
    for number in (2999, 1500, 0, 41):
        assert order(7, 33, 0.6, 10).chosen(number) == drawn[number] == one.chosen(number)


def test_a_share_that_is_not_reached_is_told(said: Said) -> None:
    images, more = decoded(3, 2), decoded(9, 2)
    for share in (0.25, 0.75):
        Batches(TrainingImages(images, images, 8, False, more), TrainSettings(labelled_share=share, batch_size=8))
    assert [contains(line, "0.75", "6", "3", "8") for line in said()] == [True]


def test_without_a_share_all_images_come_once_per_epoch() -> None:
    batches = order(5, 12, None, 4)
    assert sorted(i for number in range(len(batches)) for i in batches.chosen(number)) == list(range(17))


def test_a_small_last_batch_keeps_the_share_and_takes_images_for_many_processes() -> None:
    last = order(6, 14, 0.25, 8).chosen(2)
    assert (sum(i < 6 for i in last), len(last)) == (1, 3)
    many = order(6, 14, 0.25, 8, at_least=4)
    sizes = [sum(i >= 6 for i in many.chosen(number)) for number in range(3)]
    assert (len(many), sizes) == (3, [6, 4, 4]), "as many steps as with one process, and each image once"


def test_an_image_left_over_is_trained_on_by_many_processes_too() -> None:
    """33 images in batches of 32 were half as many steps with two processes, and one image was never seen."""
    for at_least, sizes in ((1, [32, 1]), (2, [31, 2]), (17, [32])):
        batches = order(33, 0, None, 32, at_least)
        chosen = [batches.chosen(number) for number in range(len(batches))]
        assert [len(batch) for batch in chosen] == sizes
        assert len({i for batch in chosen for i in batch}) == sum(sizes)


def test_a_share_without_unlabelled_images_is_refused() -> None:
    images = decoded(4, 2)
    with refused("labelled_share", "0 unlabelled"):
        Batches(TrainingImages(images, images, 8, False), TrainSettings(labelled_share=0.5))


def test_a_share_of_batches_of_one_is_refused() -> None:
    images = decoded(4, 2)
    with refused("labelled_share", "batch_size"):
        Batches(
            TrainingImages(images, images, 8, False, decoded(3, 2)), TrainSettings(labelled_share=0.5, batch_size=1)
        )


@pytest.mark.usefixtures("brief_teachers")
@pytest.mark.parametrize("method", ["apd", "advvlp"])
def test_a_training_with_a_share_tunes_its_teacher_and_learns_something_else(
    tmp_path: Path, shallow: DualEncoder, colours: Path, method: str
) -> None:
    data = load_data(colours, shots=2, validation=1, unlabelled="rest", unlabelled_limit=8)
    section = {**METHOD, "name": method}
    plain, mixed = (
        apd.train(shallow, data, method=section, output=tmp_path / name, batch_size=4, **QUICK, **more)
        for name, more in (("plain", {}), ("mixed", {"labelled_share": 0.5}))
    )
    one, other = plain.load_prompts(), mixed.load_prompts()
    assert any(not torch.equal(one[name], other[name]) for name in one)
