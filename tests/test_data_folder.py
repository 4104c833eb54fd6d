"""Folders of images: splits, names, shots, and everything that can be wrong with them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from apd.data import Dataset, ImageSet, list_data, load_data
from apd.data.sources.class_names import readable_names
from apd.errors import InputError
from apd.models.preprocessing import Preprocessing

from .command_line import Said
from .refusals import contains, meant, refused

PREPROCESSING = Preprocessing(8, 8, "crop", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def make(root: Path, **counts: int) -> Path:
    """Class folders with so many images; the colour tells the image."""
    for shade, (name, count) in enumerate(counts.items()):
        folder = root / name
        folder.mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8), (shade, index, 0)).save(folder / f"{index:02d}.png")
    return root


def per_class(images: ImageSet) -> list[int]:
    return [count for _, count in sorted(Counter(images.labels.tolist()).items())]


def splits(data: Dataset) -> list[set[str]]:
    return [set(images.ids) for images in (data.train, data.val, data.test)]


def test_a_folder_without_splits_is_split_60_20_20_whatever_the_seed(tmp_path: Path) -> None:
    make(tmp_path, dog=20, cat=10)
    data, other = (load_data(tmp_path, shots="all", seed=seed) for seed in (0, 1))
    assert data.class_names == ("cat", "dog")
    assert [per_class(images) for images in (data.train, data.val, data.test)] == [[6, 12], [2, 4], [2, 4]]
    assert len(set.union(*splits(data))) == 30
    assert splits(data) == splits(other)
    assert "60/20/20" in data.description
    assert data.templates == ("a photo of a {}.",)
    assert (data.name, data.mirror, data.settings.shots) == (tmp_path.name, True, "all")


def test_ids_are_relative_and_lead_to_the_image(tmp_path: Path) -> None:
    make(tmp_path / "train", cat=6, dog=6)
    make(tmp_path / "test", cat=3, dog=3)
    data = load_data(tmp_path, shots=2)
    assert set(data.test.ids) == {f"test/{name}/0{i}.png" for name in ("cat", "dog") for i in range(3)}
    decoded = data.train.decode(PREPROCESSING)
    for id_, image, label in zip(decoded.ids, decoded.images, decoded.labels.tolist(), strict=True):
        assert image[:, 0, 0].tolist() == [label, int(id_[-6:-4]), 0]
        assert data.class_names[label] in id_


def test_shots_are_nested_and_depend_on_the_seed(tmp_path: Path) -> None:
    make(tmp_path / "train", cat=12, dog=15)
    make(tmp_path / "test", cat=2, dog=2)
    drawn = [set(load_data(tmp_path, shots=shots, seed=3).train.ids) for shots in (1, 2, 4, 8)]
    assert [len(ids) for ids in drawn] == [2, 4, 8, 16]
    assert drawn[0] < drawn[1] < drawn[2] < drawn[3]
    assert load_data(tmp_path, shots=8, seed=3).train.ids == load_data(tmp_path, shots=8, seed=3).train.ids
    assert set(load_data(tmp_path, shots=8, seed=4).train.ids) != drawn[3]


def test_the_seeds_reach_every_training_image(tmp_path: Path) -> None:
    make(tmp_path / "train", cat=6, dog=6)
    make(tmp_path / "test", cat=1, dog=1)
    times = Counter(id_ for seed in range(120) for id_ in load_data(tmp_path, shots=1, seed=seed).train.ids)
    assert len(times) == 12
    assert min(times.values()) > 6 and max(times.values()) < 40  # 20 expected


@pytest.mark.parametrize(("shots", "train", "val"), [(1, 1, 1), (4, 4, 4), (8, 8, 4), (11, 11, 1), ("all", 11, 1)])
def test_validation_comes_from_unused_training_images(tmp_path: Path, shots: int, train: int, val: int) -> None:
    make(tmp_path / "train", cat=12, dog=12)
    make(tmp_path / "test", cat=2, dog=2)
    data = load_data(tmp_path, shots=shots)
    assert per_class(data.train) == [train, train]
    assert per_class(data.val) == [val, val]
    assert not set(data.train.ids) & set(data.val.ids)
    assert all(id_.startswith("train/") for id_ in data.val.ids)


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_own_validation_split_is_limited_to_min_k_4(tmp_path: Path, name: str) -> None:
    for split, count in {"train": 9, name: 6, "test": 2}.items():
        make(tmp_path / split, cat=count, dog=count)
    assert per_class(load_data(tmp_path, shots=2).val) == [2, 2]
    assert per_class(load_data(tmp_path, shots=9).val) == [4, 4]
    everything = load_data(tmp_path, shots="all")
    assert per_class(everything.val) == [6, 6] and per_class(everything.train) == [9, 9]


@pytest.mark.parametrize(
    ("shots", "asked", "train", "val"), [(2, 7, 2, 7), (8, 7, 8, 4), (2, 1, 2, 1), ("all", 3, 9, 3)]
)
def test_more_or_fewer_validation_images_leave_the_shots_as_they_are(
    tmp_path: Path, shots: int, asked: int, train: int, val: int
) -> None:
    make(tmp_path / "train", cat=12, dog=12)
    make(tmp_path / "test", cat=2, dog=2)
    data = load_data(tmp_path, shots=shots, validation=asked)
    assert (per_class(data.train), per_class(data.val)) == ([train, train], [val, val])
    assert not set(data.train.ids) & set(data.val.ids)
    if shots != "all":
        usual = load_data(tmp_path, shots=shots)
        assert data.train.ids == usual.train.ids
        assert set(data.val.ids) <= set(usual.val.ids) or set(usual.val.ids) <= set(data.val.ids)


def test_validation_images_of_an_own_split_by_number(tmp_path: Path) -> None:
    for split, count in {"train": 9, "val": 6, "test": 2}.items():
        make(tmp_path / split, cat=count, dog=count)
    data = load_data(tmp_path, shots=2, validation=5)
    assert per_class(data.val) == [5, 5] and "5 per class of the data's own" in data.description
    assert per_class(load_data(tmp_path, shots=2, validation=50).val) == [6, 6]
    assert per_class(load_data(tmp_path, shots="all", validation=5).val) == [5, 5]
    with refused("validation", "0"):
        load_data(tmp_path, shots=2, validation=0)


def test_base_and_new_classes(tmp_path: Path) -> None:
    make(tmp_path, a=6, b=6, c=6, d=6, e=6)
    data = load_data(tmp_path, shots=2)
    base, new = data.classes("base"), data.classes("new")
    assert base.class_names == ("a", "b", "c") and new.class_names == ("d", "e")
    assert sorted(set(new.train.labels.tolist())) == [0, 1]
    assert set(base.test.ids) | set(new.test.ids) == set(data.test.ids)
    assert new.test.ids[0].startswith("d/")
    assert load_data(tmp_path, shots=2, classes="new").train.ids == new.train.ids
    assert data.classes("all") is data
    with refused("bass", meant("base")):
        data.classes("bass")  # type: ignore[arg-type]
    assert base.classes("base") is base
    with refused("base", "new", "whole"):
        base.classes("new")
    with refused("None", "all"):
        data.classes(None)  # type: ignore[arg-type]
    make(tmp_path / "three", a=6, b=6, c=6)
    with refused("classes=new", "1", "3"):
        load_data(tmp_path / "three", shots=2, classes="new")


def test_split_by_name(tmp_path: Path) -> None:
    data = load_data(make(tmp_path, a=6, b=6), shots=1)
    assert data.split("val") is data.val
    with refused("trian", meant("train")):
        data.split("trian")  # type: ignore[arg-type]


def test_sample_is_a_seeded_subset_in_order(tmp_path: Path) -> None:
    images = load_data(make(tmp_path, a=40, b=40), shots=1).test
    ten, five = images.sample(10, seed=1), images.sample(5, seed=1)
    assert len(ten) == 10 and set(five.ids) < set(ten.ids)
    assert list(ten.ids) == [id_ for id_ in images.ids if id_ in ten.ids]
    assert set(images.sample(10, seed=2).ids) != set(ten.ids)
    assert images.sample(None) is images and images.sample(99) is images
    with refused("limit", "0"):
        images.sample(0)


def test_select_keeps_the_given_order(tmp_path: Path) -> None:
    images = load_data(make(tmp_path, a=5, b=5), shots=1).test
    assert images.select(torch.tensor([1, 0])).ids == (images.ids[1], images.ids[0])
    assert images.select([1, 0]).labels.tolist() == [1, 0]


def test_classes_txt_names_the_folders(tmp_path: Path) -> None:
    make(tmp_path, n01=5, n02=5)
    listing = tmp_path / "classes.txt"
    listing.write_text("tench\ngreat white shark\n")
    assert load_data(tmp_path, shots=1).class_names == ("tench", "great white shark")
    listing.write_text("n02,great white shark\nn01,tench, Tinca tinca\n")
    assert load_data(tmp_path, shots=1).class_names == ("tench, Tinca tinca", "great white shark")
    listing.write_text("n02 great white shark\nn01 tench\n")
    assert load_data(tmp_path, shots=1).class_names == ("tench", "great white shark")


def test_classes_txt_is_found_in_any_case_and_missed_where_it_is_not_read(tmp_path: Path, said: Said) -> None:
    make(tmp_path / "plain", n01=5, n02=5)
    (tmp_path / "plain" / "Classes.TXT").write_text("tench\ngreat white shark\n")
    assert load_data(tmp_path / "plain", shots=1).class_names == ("tench", "great white shark")
    for split in ("train", "test"):
        make(tmp_path / "split" / split, n01=5, n02=5)
    (tmp_path / "split" / "train" / "classes.txt").write_text("tench\ngreat white shark\n")
    assert load_data(tmp_path / "split", shots=1).class_names == ("n01", "n02")
    assert any("train/classes.txt" in line for line in said())


def test_a_class_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, a=5, b=5)
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr("apd.data.sources.folder.os.scandir", scandir)
    with refused("Cannot list", str(tmp_path / "b")):
        load_data(tmp_path, shots=1)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("tench\n", ["1", "2"]),
        ("n01,tench\n", ["n02"]),
        ("n01,tench\nn02,shark\nn01,trout\n", ["n01"]),
        ("fish\nFish\n", ["2", "'fish'"]),
    ],
)
def test_classes_txt_that_does_not_fit(tmp_path: Path, text: str, names: list[str]) -> None:
    make(tmp_path, n01=5, n02=5)
    (tmp_path / "classes.txt").write_text(text)
    with refused("classes.txt", *names):
        load_data(tmp_path, shots=1)


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["n01440764-tench", "n01484850_great_white_shark"], ("tench", "great white shark")),
        (["001.Black_footed_Albatross", "002.Laysan_Albatross"], ("Black footed Albatross", "Laysan Albatross")),
        (["3_door", "5_door"], ("3 door", "5 door")),
        (["7_eleven", "cafe"], ("7 eleven", "cafe")),
        (["2_of_hearts", "3_of_clubs"], ("2 of hearts", "3 of clubs")),
        (["1_cat", "2_cats", "5_fingers"], ("1 cat", "2 cats", "5 fingers")),
        (["2_door_car", "4_wheel_drive"], ("2 door car", "4 wheel drive")),
        (["1_cat", "2_dog"], ("cat", "dog")),
        (["007.Tern", "150.Owl"], ("Tern", "Owl")),
        (["101.Tern", "15.Owl"], ("Tern", "Owl")),
        (["AnnualCrop", "SeaLake", "McLaren", "USA"], ("Annual Crop", "Sea Lake", "McLaren", "USA")),
        (["0", "1", "__"], ("0", "1", "__")),
    ],
)
def test_readable_names(folders: list[str], names: tuple[str, ...]) -> None:
    assert readable_names(folders) == names


def test_harmless_files_and_hidden_ones_are_ignored(tmp_path: Path) -> None:
    make(tmp_path, cat=5, dog=5)
    for name in ("cat/notes.txt", "cat/.DS_Store", "dog/Thumbs.db", "dog/._00.png", "README.md"):
        (tmp_path / name).write_text("x")
    make(tmp_path / ".cache", x=2)
    data = load_data(tmp_path, shots="all")
    assert len(data.class_names) == 2 and len(data.train) + len(data.val) + len(data.test) == 10


def test_names_that_differ_in_their_unicode_form_are_equal(tmp_path: Path) -> None:
    assert "2 classes" in fails(make(tmp_path, **{"caf\u00e9": 5, "cafe\u0301": 5}))


def test_train_may_be_a_class(tmp_path: Path) -> None:
    assert load_data(make(tmp_path, train=5, tractor=5), shots=1).class_names == ("tractor", "train")


def test_images_in_nested_folders_belong_to_the_class(tmp_path: Path) -> None:
    make(tmp_path / "cat", indoor=3, outdoor=3)
    make(tmp_path, dog=6)
    assert len(load_data(tmp_path, shots="all").train) == 8


def fails(source: str | Path, **options: object) -> str:
    """The one-line message of a refused source."""
    with pytest.raises(InputError) as caught:
        load_data(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("own_validation", [False, True])
def test_a_class_with_fewer_images_than_shots_gives_what_it_has(tmp_path: Path, own_validation: bool) -> None:
    make(tmp_path / "train", cat=9, dog=5, eel=1)
    make(tmp_path / "test", cat=1, dog=1, eel=1)
    if own_validation:
        make(tmp_path / "val", cat=2, dog=6, eel=1)
    data = load_data(tmp_path, shots=8)
    train, val = ([8, 5, 1], [2, 4, 1]) if own_validation else ([8, 4, 1], [1, 1])
    assert (per_class(data.train), per_class(data.val)) == (train, val)
    assert not set(data.train.ids) & set(data.val.ids)
    for text in (data.shortage(), data.description):
        assert f"fewer in 2 of 3 classes (the fewest: {min(train)} of 'eel')" in text
    assert load_data(tmp_path, shots=1).shortage() == "" == load_data(tmp_path, shots="all").shortage()
    assert per_class(load_data(tmp_path, shots=10**20).train) == per_class(load_data(tmp_path, shots=100).train)


def test_a_folder_without_splits_is_trained_on_what_it_has(tmp_path: Path) -> None:
    make(tmp_path, blue=21, red=10, green=2)
    data = load_data(tmp_path)
    assert data.class_names == ("blue", "green", "red")
    assert (per_class(data.train), per_class(data.test)) == ([13, 1, 6], [4, 1, 2])
    assert "'green'" in data.shortage()
    data.check_trainable()


def test_a_class_too_small_to_divide_says_how_many_and_the_way_out(tmp_path: Path) -> None:
    one = fails(make(tmp_path / "one", a=5, b=1))
    assert "'b'" in one and "has 1 image, but two are needed" in one and "train/, val/ and test/" in one
    data = load_data(make(tmp_path / "two", a=2, b=2))
    assert per_class(data.train) == per_class(data.test) == [1, 1] and not len(data.val)
    with refused(str(tmp_path / "two"), "validation", "val/"):
        data.check_trainable()


def test_no_shots_need_unlabelled_images(tmp_path: Path) -> None:
    assert contains(fails(make(tmp_path, a=5, b=5), shots=0), "data.shots=0", "data.unlabelled")


@pytest.mark.parametrize("shots", [-1, True, "some", 1.5])
def test_shots_must_be_a_count(tmp_path: Path, shots: object) -> None:
    assert f"got {shots!r}" in fails(make(tmp_path, a=5, b=5), shots=shots)


def test_a_class_of_one_training_image_has_none_for_validation(tmp_path: Path) -> None:
    make(tmp_path / "train", cat=1, dog=3)
    make(tmp_path / "test", cat=1, dog=1)
    for shots in ("all", 1, 16):
        data = load_data(tmp_path, shots=shots)
        assert data.train.labels.tolist().count(0) == 1
        assert 0 not in data.val.labels.tolist() and len(data.val) == 1


def test_a_class_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    make(tmp_path, cat=5, dog=5)
    os.rename(tmp_path / "dog", os.fsencode(tmp_path / "d") + b"\xff")
    assert "UTF-8" in fails(tmp_path)


def test_wrong_folders(tmp_path: Path) -> None:
    assert "no folder or file" in fails(tmp_path / "none")
    assert "no class folders" in fails(make(tmp_path / "flat", **{"": 3}))
    assert "one class folder only (cat/)" in fails(make(tmp_path / "one", cat=5))
    outer = make(tmp_path / "outer" / "inner", cat=5, dog=5).parent
    assert f"did you mean {outer / 'inner'}?" in fails(outer)
    assert "'b' of" in fails(make(tmp_path / "few", a=5, b=1))
    empty = make(tmp_path / "empty", cat=5, dog=0)
    assert str(empty / "dog") in fails(empty)
    assert "classes named 'black cat'" in fails(make(tmp_path / "twice", black_cat=5, **{"black-cat": 5}))


def test_a_folder_of_data_sets_is_no_data_set(tmp_path: Path) -> None:
    for name in ("cifar", "pets"):
        make(tmp_path / name / "train", a=3, b=3)
        make(tmp_path / name / "test", a=3, b=3)
    message = fails(tmp_path)
    assert str(tmp_path / "cifar") in message and "is a data set" in message


def test_wrong_splits(tmp_path: Path) -> None:
    root = make(tmp_path / "s" / "train", cat=5, dog=5).parent
    assert "no test/" in fails(root)
    make(root / "val", cat=1, dog=1)
    assert "no test/" in fails(root)
    make(root / "test", cat=1)
    assert "dog/ is not in every split" in fails(root)
    make(root / "test", dog=1, cow=1)
    assert "cow/ is not in every split" in fails(root)
    (root / "test" / "cow" / "00.png").unlink()
    (root / "test" / "cow").rmdir()
    load_data(root, shots=1)
    make(root / "valid", cat=1, dog=1)
    assert "one split twice" in fails(root)
    make(root, extra=1)
    assert "extra/ beside the splits" in fails(root)


def test_a_class_that_is_called_like_a_split_is_told_of(tmp_path: Path) -> None:
    make(tmp_path, valid=5, invalid=5)
    message = fails(tmp_path)
    assert "invalid/" in message and "valid/, called like a split" in message and "classes.txt" in message


def test_files_that_are_no_images_or_of_no_class(tmp_path: Path) -> None:
    make(tmp_path, cat=5, dog=5)
    film = tmp_path / "cat" / "film.mp4"
    film.write_text("x")
    assert f"{film} is not an image" in fails(tmp_path)
    film.rename(tmp_path / "cat.png")
    assert "beside the class folders" in fails(tmp_path)


def test_photos_that_need_converting_are_counted_as_images(tmp_path: Path) -> None:
    make(tmp_path, cat=5, dog=5)
    (tmp_path / "cat" / "IMG_1.HEIC").write_bytes(b"x")
    (tmp_path / "dog" / "raw.nef").write_bytes(b"x")
    data = load_data(tmp_path, shots="all")
    ids = [*data.train.ids, *data.val.ids, *data.test.ids]
    assert len(ids) == 12 and {"cat/IMG_1.HEIC", "dog/raw.nef"} <= set(ids)


def test_unknown_sources_say_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    assert fails(tmp_path / "phtos").endswith(f"there is no folder or file {tmp_path / 'phtos'}. Did you mean photos?")
    assert fails(tmp_path / "zebra").endswith(f"there is no folder or file {tmp_path / 'zebra'}.")
    monkeypatch.chdir(tmp_path)
    assert "'phtos' is neither" in fails("phtos") and fails("phtos").endswith("Did you mean photos?")
    assert "Known: digits" in fails("zebra") and "photos" not in fails("zebra")
    assert "Did you mean digits?" in fails("digit")
    assert "hf:some/thing" in fails("some/thing")
    assert "no folder or file" in fails("./digit")
    file = tmp_path / "data.zip"
    file.write_text("x")
    assert "another kind" in fails(file)
    assert "columns" in fails("digits", columns=("image", "label"))


@pytest.mark.parametrize("templates", [["a photo"], ["{} and {}"], ["a {0} {}"], [], "a photo of a {}."])
def test_templates_need_one_place_for_the_name(templates: object) -> None:
    assert "template" in fails("digits", templates=templates)


def test_templates_are_taken(tmp_path: Path) -> None:
    data = load_data(make(tmp_path, a=5, b=5), shots=1, templates=["a drawing of a {}.", "{}"])
    assert data.templates == ("a drawing of a {}.", "{}")


def test_list_data_names_the_built_in_set() -> None:
    rows = list_data()
    assert rows[0][0] == "digits" and all(len(row) == 2 and all(row) for row in rows)


def test_validation_images_that_leave_one_for_training_are_told(tmp_path: Path) -> None:
    make(tmp_path / "train", cat=9, dog=40)
    make(tmp_path / "test", cat=1, dog=1)
    data = load_data(tmp_path, shots="all", validation=10)
    assert per_class(data.train)[0] == 1 and "'cat'" not in data.shortage() and "cat" in data.shortage()
    assert load_data(tmp_path, shots="all", validation=2).shortage() == ""


def test_a_table_beside_class_folders_describes_them(tmp_path: Path) -> None:
    make(tmp_path, cat=6, dog=6)
    (tmp_path / "metadata.parquet").write_bytes(b"anything")
    assert load_data(tmp_path, shots=1).class_names == ("cat", "dog")
    (tmp_path / "metadata.parquet").rename(tmp_path / "train.parquet")
    with refused("parquet"):
        load_data(tmp_path, shots=1)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"columns": "path"}, ["columns", "'path'"]),
        ({"columns": ("path",)}, ["columns", "two"]),
        ({"memory_gb": "4"}, ["memory_gb", "'4'"]),
        ({"shots": 0, "class_names": [1, 2]}, ["class_names", "1"]),
        ({"templates": [3]}, ["template", "3"]),
    ],
)
def test_arguments_of_another_type_are_refused(tmp_path: Path, given: dict[str, Any], named: list[str]) -> None:
    make(tmp_path, cat=6, dog=6)
    with refused(*named):
        load_data(tmp_path, **given)
