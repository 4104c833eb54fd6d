"""Folders above the class folders: splits in any spelling, domains, letters; and links below them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from apd.data import load_data
from apd.errors import InputError


def classes(folder: Path, *names: str, count: int = 5) -> Path:
    """Class folders of images."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / name / f"{index}.png")
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_data(folder, shots=1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Training", None, "Testing"),
        ("Training", None, "Test"),
        ("TRAIN", "Dev", "TEST"),
        ("train", "Validation", "testing"),
        ("training", "valid", "test"),
        ("seg_train", None, "seg_test"),
        ("training_set", "val_set", "test_set"),
        ("trainset", None, "testset"),
        ("Train Images", "Validation Images", "Test Images"),
        ("train2017", "val2017", "test2017"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val", "ILSVRC2012_img_test"),
    ],
)
def test_splits_in_many_spellings(tmp_path: Path, train: str, val: str | None, test: str) -> None:
    classes(tmp_path / train, "cat", "dog")
    if val:
        classes(tmp_path / val, "cat", "dog", count=2)
    classes(tmp_path / test, "cat", "dog", count=3)
    data = load_data(tmp_path, shots=2)
    assert data.class_names == ("cat", "dog")
    origins = [{id_.split("/")[0] for id_ in split.ids} for split in (data.train, data.val, data.test)]
    assert origins == [{train}, {val or train}, {test}]


def test_splits_unpacked_one_level_too_deep(tmp_path: Path) -> None:
    for split in ("seg_train", "seg_test"):
        classes(tmp_path / split / split, "sea", "street")
    data = load_data(tmp_path, shots=1)
    assert data.class_names == ("sea", "street") and data.test.ids[0].startswith("seg_test/seg_test/sea/")
    Image.new("RGB", (8, 8)).save(classes(tmp_path / "seg_pred", "seg_pred") / "seg_pred" / "0.png")
    assert "seg_pred/ beside the splits" in refused(tmp_path)


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("trainA", "trainB", "testA", "testB"), "several pairs of splits"),
        (("train_images", "test"), "test/, train_images/, which may be splits or classes"),
        (("train", "test_images"), "test_images/, train/, which may be splits or classes"),
        (("train_small", "val_big"), "may be splits or classes"),
        (("train", "dev", "val", "test"), "one split twice"),
        (("train", "training"), "one split twice"),
        (("training", "validation"), "no test/"),
    ],
)
def test_unclear_splits_are_refused(tmp_path: Path, folders: tuple[str, ...], said: str) -> None:
    for folder in folders:
        classes(tmp_path / folder, "cat", "dog")
    message = refused(tmp_path)
    assert said in message


@pytest.mark.parametrize("names", [("training", "reading"), ("train_station", "bus_station"), ("latest", "train")])
def test_classes_that_sound_like_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    data = load_data(classes(tmp_path, *names), shots=1)
    assert data.class_names == tuple(name.replace("_", " ") for name in sorted(names))


def test_domains_above_classes_are_refused_and_offered(tmp_path: Path) -> None:
    for domain in ("art_painting", "cartoon", "photo"):
        classes(tmp_path / domain, "dog", "elephant")
    classes(tmp_path / "cartoon", "guitar")
    message = refused(tmp_path)
    assert f"apd train {tmp_path / 'photo'}" in message and f"--data {tmp_path / 'art_painting'}" in message
    assert "dog/ and elephant/" in message
    assert load_data(tmp_path / "photo", shots=1).class_names == ("dog", "elephant")
    outer = tmp_path / "outer"
    for split in ("train", "heldout"):
        classes(outer / split, "dog", "elephant")
    assert "train/, val/ and test/" in refused(outer)


def test_letters_above_classes_are_refused(tmp_path: Path) -> None:
    classes(tmp_path / "a", "abbey", "airport")
    classes(tmp_path / "b", "bakery")
    classes(tmp_path / "b" / "bank", "indoor", "outdoor")
    message = refused(tmp_path)
    assert "a/abbey" in message and "sun397@ROOT" in message


def test_groups_above_classes_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes(tmp_path / "animal", "cat", "dog")
    classes(tmp_path / "vehicle", "bus", "car")
    assert load_data(tmp_path, shots=1).class_names == ("animal", "vehicle")
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "animal/cat" in caplog.text


def test_one_inner_folder_is_no_domain(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cat", "dog"):
        classes(tmp_path / name, "images")
    assert load_data(tmp_path, shots=1).class_names == ("cat", "dog") and not caplog.records


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    data = classes(tmp_path / "data", "cat", "dog")
    more = classes(tmp_path / "elsewhere", "kittens", "bird")
    (data / "cat" / "more").symlink_to(more / "kittens")
    (data / "bird").symlink_to(more / "bird")
    loaded = load_data(data, shots="all")
    ids = [*loaded.train.ids, *loaded.val.ids, *loaded.test.ids]
    assert sorted(ids) == sorted(
        f"{name}/{index}.png" for name in ("bird", "cat", "cat/more", "dog") for index in range(5)
    )


@pytest.mark.parametrize(
    ("link", "target"), [("cat/loop", "cat"), ("cat/up", "."), ("cat/far", ".."), ("cat/d", "dog")]
)
def test_loops_and_folders_met_twice_are_refused(tmp_path: Path, link: str, target: str) -> None:
    data = classes(tmp_path / "data", "cat", "dog")
    (data / link).symlink_to(data / target, target_is_directory=True)
    assert str(data / link) in refused(data)


def test_a_split_that_is_a_link_to_another_is_refused(tmp_path: Path) -> None:
    train = classes(tmp_path / "train", "cat", "dog")
    (tmp_path / "test").symlink_to(train)
    message = refused(tmp_path)
    assert str(tmp_path / "test" / "cat") in message and str(train / "cat") in message


@pytest.mark.parametrize("link", ["bird", "cat/more"])
def test_links_to_nowhere_are_refused(tmp_path: Path, link: str) -> None:
    data = classes(tmp_path / "data", "cat", "dog")
    (data / link).symlink_to(tmp_path / "gone")
    assert str(data / link) in refused(data)
    (data / link).unlink()
    (data / "notes.txt").symlink_to(tmp_path / "gone")
    assert load_data(data, shots=1).class_names == ("cat", "dog")


@pytest.mark.parametrize("junk", ["@eaDir", "$RECYCLE.BIN", "lost+found", "_cache", "__background__", ".net"])
def test_folders_that_are_left_out_are_named(tmp_path: Path, junk: str, caplog: pytest.LogCaptureFixture) -> None:
    data = load_data(classes(tmp_path, "cat", "dog", junk), shots=1)
    assert data.class_names == ("cat", "dog")
    assert [record.levelname for record in caplog.records] == ["WARNING"] and f"{junk}/" in caplog.text


def test_hidden_folders_without_images_are_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes(tmp_path, "cat", "dog", "__MACOSX", count=0)
    for name in ("cat", "dog"):
        classes(tmp_path / name, "more")
    (tmp_path / "__MACOSX" / "._0.png").write_bytes(b"x")
    assert load_data(tmp_path, shots=1).class_names == ("cat", "dog") and not caplog.records


@pytest.mark.parametrize("linked", ["train", "test"])
def test_an_image_in_two_splits_by_a_link_is_refused(tmp_path: Path, linked: str) -> None:
    for split in ("train", "test"):
        classes(tmp_path / split, "cat", "dog")
    other = "test" if linked == "train" else "train"
    link = tmp_path / linked / "cat" / "link.png"
    link.symlink_to(tmp_path / other / "cat" / "0.png")
    message = refused(tmp_path)
    assert str(link) in message and str(tmp_path / other / "cat" / "0.png") in message


def test_links_to_images_elsewhere_are_followed_once(tmp_path: Path) -> None:
    other = classes(tmp_path / "other", "cat")
    data = classes(tmp_path / "data", "cat", "dog")
    (data / "cat" / "link.png").symlink_to(other / "cat" / "0.png")
    loaded = load_data(data, shots="all")
    assert len(loaded.train) + len(loaded.val) + len(loaded.test) == 11
    (data / "dog" / "link.png").symlink_to(other / "cat" / "0.png")
    assert str(data / "dog" / "link.png") in refused(data)


def test_masks_are_not_domains(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        classes(tmp_path / name, "images", "masks")
    message = refused(tmp_path)
    assert "masks/" in message and "apd train" not in message


def test_splits_below_the_classes_are_refused(tmp_path: Path) -> None:
    classes(tmp_path / "cat", "train", "test")
    classes(tmp_path / "ship", "train")
    assert "train/cat/" in refused(tmp_path)
