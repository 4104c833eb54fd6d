"""Real images, where they are at hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from apd.data import load_data
from apd.models.preprocessing import Preprocessing

DATA = Path(__file__).parents[2] / "shared" / "testbed" / "data"
PREPROCESSING = Preprocessing(32, 36, "crop", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

pytestmark = [
    pytest.mark.testbed,
    pytest.mark.skipif(not DATA.is_dir(), reason="the testbed's images are not beside the checkout"),
]


def test_caltech101_by_its_split_file(monkeypatch: pytest.MonkeyPatch) -> None:
    source = DATA / "caltech101" / "split_zhou_Caltech101.json"
    with monkeypatch.context() as patch:
        patch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("an image was opened"))
        everything = load_data(source, shots="all")
    assert [len(split) for split in (everything.train, everything.val, everything.test)] == [4128, 1649, 2465]
    assert len(everything.class_names) == 100
    data = load_data(source, shots=16, seed=1)
    assert set(Counter(data.train.labels.tolist()).values()) == {16} and len(data.train) == 1600
    assert set(Counter(data.val.labels.tolist()).values()) == {4}
    assert "water lilly" in data.class_names and data.class_names[0] == "face"
    base, new = data.classes("base"), data.classes("new")
    assert len(base.class_names) == len(new.class_names) == 50
    assert len(base.test) + len(new.test) == 2465
    decoded = data.test.sample(64).decode(PREPROCESSING)
    assert decoded.images.shape == (64, 3, 32, 32) and decoded.images.float().std() > 20


@pytest.mark.parametrize(
    ("name", "classes", "test"), [("cifar10", 10, 1000), ("tiny-imagenet", 200, 6800), ("dtd10", 10, 400)]
)
def test_folders(name: str, classes: int, test: int) -> None:
    data = load_data(DATA / name, shots=8)
    assert len(data.class_names) == classes
    assert [len(split) for split in (data.train, data.val, data.test)] == [8 * classes, 4 * classes, test]
    assert not any(set("_-") & set(class_name) for class_name in data.class_names)
    assert data.val.sample(8).decode(PREPROCESSING).images.shape == (8, 3, 32, 32)
