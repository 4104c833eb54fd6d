"""The standard data sets by name, each against a miniature of its published layout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from apd.data import list_data, load_data, same_source, short_name
from apd.data.sources.standard import STANDARD, Standard, find_name
from apd.errors import InputError
from apd.models.preprocessing import Preprocessing

from .refusals import refused

PREPROCESSING = Preprocessing(4, 4, "crop", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TRAINED = [name for name, known in STANDARD.items() if not known.test_only]
TESTED = [name for name, known in STANDARD.items() if known.test_only]


def wnids(count: int) -> list[str]:
    """WordNet ids, the two pairs of ImageNet's classes with one name among them."""
    known = ["n03773504", "n04008634", "n04355933", "n04356056"]
    return sorted([*(f"n{number:08d}" for number in range(count - 4)), *known])


class Miniature:
    """Builds a data set in its layout: every class, two training images, one of each other split, all the same file."""

    def __init__(self, root: Path, known: Standard, classes: int | None = None) -> None:
        self.folder, self.known = root / known.folder, known
        self.classes = known.classes if classes is None else classes
        self.pixel = root / "pixel.png"
        self.folder.mkdir(parents=True)
        if not self.pixel.exists():
            Image.new("RGB", (4, 4), (10, 20, 30)).save(self.pixel)

    def image(self, *parts: str) -> None:
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(self.pixel, path)

    def text(self, name: str, lines: list[str]) -> None:
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))

    def class_names(self) -> None:
        alike = {"n03773504": "missile", "n04008634": "missile", "n04355933": "sunglasses", "n04356056": "sunglasses"}
        lines = [f"{wnid} {alike.get(wnid, f'thing number {wnid[1:]}')}" for wnid in wnids(self.classes)]
        self.text("classnames.txt", lines)

    def split_file(self) -> None:
        counts = {"train": 2, "val": 1, "test": 1}
        inside = {"train": "cars_train/", "val": "cars_train/", "test": "cars_test/"}
        top = inside if "cars_train/" in self.known.holds else dict.fromkeys(counts, "")
        rows = {
            split: [[f"{top[split]}c{k}/{split}{i}.jpg", k, f"kind_{k}"] for k in range(self.classes) for i in range(n)]
            for split, n in counts.items()
        }
        for image, *_ in (row for split in rows.values() for row in split):
            self.image(self.known.images, image)
        (self.folder / self.known.listing).write_text(json.dumps(rows))

    def class_folders(self) -> None:
        for k in range(self.classes):
            for split, count in {"train": 2, "test": 1}.items():
                for i in range(count):
                    self.image(split, f"kind_{k:03d}", f"{i}.png")

    def aircraft(self) -> None:
        names = [f"7{k:02d}-200" if k else "Gulfstream IV" for k in range(self.classes)]
        self.text("variants.txt", names)
        number = 0
        for split, count in {"train": 2, "val": 1, "test": 1}.items():
            lines = []
            for name in names:
                for _ in range(count):
                    self.image("images", f"{number:07d}.jpg")
                    lines.append(f"{number:07d} {name}")
                    number += 1
            self.text(f"images_variant_{split}.txt", lines)

    def imagenet(self) -> None:
        self.class_names()
        for wnid in wnids(self.classes):
            for i in range(2):
                self.image("images", "train", wnid, f"{wnid}_{i}.JPEG")
            self.image("images", "val", wnid, f"ILSVRC2012_val_{wnid}.JPEG")

    def imagenet_test(self) -> None:
        self.class_names()
        for wnid in wnids(self.classes):
            self.image(self.known.images, wnid, "0.jpg")
        self.text(f"{self.known.images}/README.txt", ["about"])

    def imagenet_v2(self) -> None:
        self.class_names()
        for k in range(self.classes):
            self.image(self.known.images, str(k), "0.jpeg")

    def tiny_imagenet(self) -> None:
        ids = wnids(self.classes)
        self.text("wnids.txt", ids[::-1])
        self.text("words.txt", [*(f"{wnid}\tthing {wnid[1:]}, matter" for wnid in ids), "n99999999\tnot in it"])
        for wnid in ids:
            self.text_boxes(wnid)
            for i in range(2):
                self.image("train", wnid, "images", f"{wnid}_{i}.JPEG")
            self.image("val", "images", f"val_{wnid}.JPEG")
        self.text("val/val_annotations.txt", [f"val_{wnid}.JPEG\t{wnid}\t0\t0\t62\t62" for wnid in ids])
        self.image("test", "images", "test_0.JPEG")

    def text_boxes(self, wnid: str) -> None:
        (self.folder / "train" / wnid).mkdir(parents=True)
        self.text(f"train/{wnid}/{wnid}_boxes.txt", ["0 0 62 62"])

    def build(self) -> None:
        getattr(self, self.known.layout.replace(" ", "_").replace("-", "_"))()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Miniatures of all standard data sets."""
    folder = tmp_path_factory.mktemp("data")
    for known in STANDARD.values():
        Miniature(folder, known).build()
    return folder


def fails(source: str) -> str:
    with pytest.raises(InputError) as caught:
        load_data(source, shots=1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", TRAINED)
def test_every_set_loads_from_its_layout(name: str, root: Path) -> None:
    known = STANDARD[name]
    data = load_data(f"{name}@{root}", shots=1)
    assert (data.name, data.source) == (name, f"{name}@{root}")
    assert len(data.class_names) == known.classes
    assert [len(split) for split in (data.train, data.val, data.test)] == [known.classes] * 3
    assert sorted(data.test.labels.tolist()) == list(range(known.classes))
    assert data.templates == (known.template,) and data.mirror
    first = data.test.select([0, known.classes - 1]).decode(PREPROCESSING)
    assert first.images[:, :, 0, 0].tolist() == [[10, 20, 30]] * 2
    assert not set(data.train.ids) & set(data.test.ids)
    data.check_trainable()


@pytest.mark.parametrize("name", TESTED)
def test_a_test_set_has_only_test_images(name: str, root: Path) -> None:
    known = STANDARD[name]
    data = load_data(f"{name}@{root}")
    assert [len(split) for split in (data.train, data.val, data.test)] == [0, 0, known.classes]
    assert "none for training" in data.description
    with refused(f"apd evaluate RUN --data {name}"):
        data.check_trainable()
    base = data.classes("base")
    assert [len(split) for split in (base.train, base.val, base.test)] == [0, 0, known.classes / 2]


def test_class_names_are_those_of_the_listing(root: Path) -> None:
    names = load_data(f"imagenet@{root}", shots=1).class_names
    assert names[0] == "thing number 00000000" and len(set(names)) == 1000
    assert names[-4:] == ("missile", "projectile", "sunglass", "sunglasses")
    for sibling in ("imagenet-v2", "imagenet-sketch"):
        assert load_data(f"{sibling}@{root}").class_names == names
    for subset in ("imagenet-a", "imagenet-r"):
        data = load_data(f"{subset}@{root}")
        assert set(data.class_names) < set(names)
        assert [f"thing number {id_.split('/')[1][1:]}" for id_ in data.test.ids[:3]] == list(data.class_names[:3])
    tiny = load_data(f"tiny-imagenet@{root}", shots=1)
    assert tiny.class_names[:2] == ("thing 00000000", "thing 00000001")
    for label, id_ in zip(tiny.test.labels.tolist(), tiny.test.ids, strict=True):
        assert id_.endswith(f"val_{wnids(200)[label]}.JPEG")
    aircraft = load_data(f"fgvc-aircraft@{root}", shots=1)
    assert aircraft.class_names[:2] == ("Gulfstream IV", "701-200")
    assert load_data(f"dtd@{root}", shots=1).class_names[:2] == ("kind 0", "kind 1")


def test_v2_folders_are_positions_among_the_sorted_ids(tmp_path: Path) -> None:
    """Sorted as text, folder 10 would be label 2."""
    Miniature(tmp_path, STANDARD["imagenet-v2"]).build()
    data = load_data(f"imagenet-v2@{tmp_path}")
    positions = [int(id_.split("/")[1]) for id_ in data.test.ids]
    assert positions == data.test.labels.tolist()


def test_the_siblings_of_imagenet_find_its_class_names(root: Path, tmp_path: Path) -> None:
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "classnames.txt").write_text((root / "imagenet" / "classnames.txt").read_text())
    miniature = Miniature(tmp_path, STANDARD["imagenet-r"])
    miniature.build()
    (miniature.folder / "classnames.txt").unlink()
    assert len(load_data(f"imagenet-r@{tmp_path}").class_names) == 200


def test_the_root_comes_from_the_environment(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APD_DATA", raising=False)
    message = fails("dtd")
    assert "write dtd@ROOT or set APD_DATA=ROOT" in message
    assert "dtd/ with images/, split_zhou_DescribableTextures.json" in message
    assert "Or load it from the hub: hf:ethz/food101." in fails("food101")
    monkeypatch.setenv("APD_DATA", str(root))
    data = load_data("dtd", shots=1)
    assert (data.name, data.source, data.templates) == ("dtd", "dtd", ("{} texture.",))
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    assert str(tmp_path / "dtd") in fails("dtd")


def test_a_folder_here_is_a_folder_unless_a_root_is_set(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from .models import save_colours

    save_colours(tmp_path / "dtd", per_class=5)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("APD_DATA", raising=False)
    assert load_data("dtd", shots=1).class_names == ("blue", "green", "red")
    assert load_data("./dtd", shots=1).class_names == ("blue", "green", "red")
    monkeypatch.setenv("APD_DATA", str(root))
    assert len(load_data("dtd", shots=1).class_names) == 47
    assert load_data("./dtd", shots=1).class_names == ("blue", "green", "red")


@pytest.mark.parametrize("name", STANDARD)
def test_what_is_missing_is_named_with_the_whole_layout(name: str, tmp_path: Path) -> None:
    known = STANDARD[name]
    for missing in known.holds:
        place = tmp_path / missing.replace("/", "_")
        for entry in known.holds:
            if entry != missing and not entry.startswith(missing):
                path = place / known.folder / entry
                path.parent.mkdir(parents=True, exist_ok=True)
                path.mkdir(exist_ok=True) if entry.endswith("/") else path.touch()
        message = fails(f"{name}@{place}")
        assert str(place / known.folder) in message and f"but {missing} is not there" in message
        assert all(entry in message for entry in known.holds)


@pytest.mark.parametrize("name", ["eurosat", "cifar10", "tiny-imagenet", "imagenet-r"])
def test_another_number_of_classes_is_refused(name: str, tmp_path: Path) -> None:
    classes = STANDARD[name].classes - 1
    Miniature(tmp_path, STANDARD[name], classes).build()
    assert f"holds {classes} classes, but {STANDARD[name].title} has {classes + 1}" in fails(f"{name}@{tmp_path}")


def test_listings_that_do_not_fit(tmp_path: Path) -> None:
    def broken(name: str, file: str, old: str, new: str) -> str:
        place = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        miniature = Miniature(place, STANDARD[name])
        miniature.build()
        path = miniature.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return fails(f"{name}@{place}")

    assert "names the variant '999'" in broken("fgvc-aircraft", "images_variant_val.txt", "701-200", "999")
    assert "no line for the class n00000001" in broken("tiny-imagenet", "words.txt", "n00000001", "n77777777")
    annotations = "val/val_annotations.txt"
    assert "a line without an image and a class" in broken("tiny-imagenet", annotations, "\tn00000001", "\tn77777777")
    assert "a line without an image and a class" in broken("tiny-imagenet", annotations, "\tn00000001", "")
    assert "no line for the class n00000001" in broken("imagenet-a", "classnames.txt", "n00000001 ", "n77777777 ")
    split = "split_zhou_EuroSAT.json"
    assert "lists c0/other.jpg, which is not in" in broken("eurosat", split, "c0/train0", "c0/other")
    assert "fit CSV, parquet, hub and saved data sets only" in _with_columns(tmp_path)


@pytest.mark.parametrize("name", ["imagenet", "imagenet-a", "imagenet-v2", "tiny-imagenet", "fgvc-aircraft", "cifar10"])
def test_folders_that_hold_nothing(name: str, tmp_path: Path) -> None:
    for entry in STANDARD[name].holds:
        path = tmp_path / STANDARD[name].folder / entry
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True) if entry.endswith("/") else path.touch()
    assert any(words in fails(f"{name}@{tmp_path}") for words in ("has no classes", "holds no class folders"))


def test_an_archive_unpacked_one_level_too_deep(tmp_path: Path) -> None:
    miniature = Miniature(tmp_path, STANDARD["imagenet-r"])
    miniature.class_names()
    miniature.image("imagenet-r", "imagenet-r", "n00000000", "0.jpg")
    assert "no line for the class imagenet-r" in fails(f"imagenet-r@{tmp_path}")


def _with_columns(root: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_data(f"eurosat@{root}", columns=("image", "label"))
    return str(caught.value)


def test_names_people_write(tmp_path: Path) -> None:
    for text, name in {
        "OxfordPets": "oxford-pets",
        "oxford_flowers": "flowers102",
        "caltech-101": "caltech101",
        "ImageNetV2": "imagenet-v2",
        "imagenet_sketch": "imagenet-sketch",
        "CIFAR-100": "cifar100",
        "tiny-imagenet-200": "tiny-imagenet",
        "fgvc_aircraft": "fgvc-aircraft",
    }.items():
        assert find_name(text) == name
    assert find_name("photos") is None and find_name("digits") is None
    assert short_name("dtd@/somewhere/data") == "dtd" and short_name("/somewhere/photos.csv") == "photos"
    (tmp_path / "photos.v1").mkdir()
    assert short_name(str(tmp_path / "photos.v1")) == "photos.v1"
    assert "Did you mean dtd?" in fails("ddtd")
    assert same_source("DTD@/a", "dtd@/a") and not same_source("dtd@/a", "dtd@/b") and not same_source("dtd@/a", "dtd")
    assert same_source("a/../photos", "photos") and not same_source("photos", "dtd@/photos")
    assert same_source("dtd@photos", f"dtd@{Path.cwd()}/a/../photos") and not same_source("dtd@photos", "dtd@a")
    assert same_source("~/photos", str(Path.home() / "photos"))
    assert same_source("digits", "digits") and not same_source("digits", "./digits"), "a folder of a built-in's name"
    listed = dict(list_data())
    assert all(f"{known.classes} classes" in listed[name] for name, known in STANDARD.items())


def test_templates_are_those_of_coop() -> None:
    """Written down a second time, from CoOp's trainers/zsclip.py."""
    assert {STANDARD[name].template for name in ("imagenet", "caltech101", "stanford-cars", "sun397", *TESTED)} == {
        "a photo of a {}."
    }
    assert {name: STANDARD[name].template for name in ("oxford-pets", "flowers102", "fgvc-aircraft", "food101")} == {
        "oxford-pets": "a photo of a {}, a type of pet.",
        "flowers102": "a photo of a {}, a type of flower.",
        "fgvc-aircraft": "a photo of a {}, a type of aircraft.",
        "food101": "a photo of {}, a type of food.",
    }
    assert [STANDARD[name].template for name in ("dtd", "eurosat", "ucf101")] == [
        "{} texture.",
        "a centered satellite photo of {}.",
        "a photo of a person doing {}.",
    ]


def test_a_split_file_named_by_its_path_gets_the_same_template(root: Path) -> None:
    data = load_data(root / "eurosat" / "split_zhou_EuroSAT.json", shots=1)
    assert data.templates == ("a centered satellite photo of {}.",) and data.name == "eurosat"
    assert data.train.ids == load_data(f"eurosat@{root}", shots=1).train.ids


def test_the_hub_s_cifar100_is_found_with_its_columns_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    names = ["cra", "cup", "oak_tree"]
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=names),
            "coarse_label": datasets.ClassLabel(names=["a", "b"]),
        }
    )
    rows = [{"img": Image.new("RGB", (4, 4)), "fine_label": i % 3, "coarse_label": 0} for i in range(9)]
    split = datasets.Dataset.from_list(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(train=split, test=split))
    data = load_data("hf:uoft-cs/cifar100", shots=1)
    assert data.class_names == ("crab", "cup", "oak tree") and data.templates == ("a photo of a {}.",)


@pytest.mark.testbed
def test_the_real_split_of_caltech101_by_name(tmp_path: Path, testbed: Path) -> None:
    (tmp_path / "caltech-101").symlink_to(testbed / "data" / "caltech101")
    data = load_data(f"caltech101@{tmp_path}", shots=16, seed=1)
    same = load_data(testbed / "data" / "caltech101" / "split_zhou_Caltech101.json", shots=16, seed=1)
    assert (len(data.train), len(data.val), len(data.test)) == (1600, 400, 2465)
    assert data.train.ids == same.train.ids and data.class_names == same.class_names
