"""The built-in digits, CoOp split files, and Hugging Face tables."""

from __future__ import annotations

import io
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from apd.data import ImageSet, load_data
from apd.data.load import has_columns, load_unlabelled
from apd.errors import InputError
from apd.models.preprocessing import Preprocessing

from .refusals import refused

PREPROCESSING = Preprocessing(8, 8, "crop", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def per_class(images: ImageSet) -> list[int]:
    return [count for _, count in sorted(Counter(images.labels.tolist()).items())]


def fails(source: str | Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_data(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestDigits:
    def test_splits_in_file_order(self) -> None:
        data = load_data("digits", shots=16, seed=1)
        splits = (data.train, data.val, data.test)
        numbers = [[int(id_.removeprefix("digits/")) for id_ in split.ids] for split in splits]
        assert numbers[2] == list(range(900, 1797))
        assert max(numbers[0]) < 700 <= min(numbers[1]) and max(numbers[1]) < 900
        assert per_class(data.train) == [16] * 10 and per_class(data.val) == [4] * 10
        assert data.class_names[0] == "zero" and data.templates == ("a photo of the digit {}.",)
        assert not data.mirror

    def test_images_are_the_scans(self) -> None:
        from sklearn.datasets import load_digits

        scans = load_digits()
        decoded = load_data("digits", shots=1).test.select([0, 5]).decode(PREPROCESSING)
        for image, label, index in zip(decoded.images, decoded.labels, (900, 905), strict=True):
            assert int(label) == scans.target[index]
            for channel in image:
                assert (channel.numpy() - scans.images[index] * 255 / 16).max() <= 0.5
                assert (scans.images[index] * 255 / 16 - channel.numpy()).max() <= 0.5


def split_file(folder: Path, rows: dict[str, list[Any]], images: str = "pictures") -> Path:
    for image, *_ in (row for split in rows.values() for row in split):
        path = folder / images / image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    file = folder / "split_zhou_Toy.json"
    file.write_text(json.dumps(rows))
    return file


TOYS = ("water_lilly", "cup", "ant")


def toy_rows(train: int = 6, val: int = 5) -> dict[str, list[Any]]:
    def rows(split: str, count: int) -> list[Any]:
        return [[f"{n}/{split}{i}.png", k, n] for i in range(count) for k, n in enumerate(TOYS)]

    return {"train": rows("train", train), "val": rows("val", val), "test": rows("test", 2)}


class TestCoop:
    def test_splits_names_and_image_folder(self, tmp_path: Path) -> None:
        (tmp_path / "another").mkdir()
        data = load_data(split_file(tmp_path, toy_rows()), shots=2)
        assert data.class_names == ("water lilly", "cup", "ant")
        assert [per_class(split) for split in (data.train, data.val, data.test)] == [[2] * 3, [2] * 3, [2] * 3]
        assert data.test.ids[0] == "water_lilly/test0.png"
        assert data.name == tmp_path.name
        assert len(data.test.decode(PREPROCESSING)) == 6
        everything = load_data(tmp_path / "split_zhou_Toy.json", shots="all")
        assert [per_class(split) for split in (everything.train, everything.val)] == [[6] * 3, [5] * 3]

    def test_images_may_lie_beside_the_file(self, tmp_path: Path) -> None:
        assert len(load_data(split_file(tmp_path, toy_rows(), images="."), shots=1).train) == 3

    def test_shots_are_those_of_coop(self, tmp_path: Path) -> None:
        """As CoOp's training does it: seed Python's generator, draw for train class by class, go on for val."""
        rows = toy_rows()
        random.Random(0).shuffle(rows["train"])
        data = load_data(split_file(tmp_path, rows), shots=4, seed=2)
        random.seed(2)
        for split, images, count in (("train", data.train, 4), ("val", data.val, 4)):
            tracker: dict[int, list[str]] = {}
            for image, label, _ in rows[split]:
                tracker.setdefault(label, []).append(image)
            expected = [image for items in tracker.values() for image in random.sample(items, count)]
            assert list(images.ids) == expected

    def test_a_class_with_fewer_images_is_taken_whole_and_draws_nothing(self, tmp_path: Path) -> None:
        """As by the default of Dassl, ``repeat=False``: what is drawn for the next class does not depend on it."""
        rows, kept = toy_rows(), ("water_lilly/train0.png", "water_lilly/train3.png")
        rows["train"] = [row for row in rows["train"] if row[1] != 0 or row[0] in kept]
        data, generator = load_data(split_file(tmp_path, rows), shots=4, seed=2), random.Random(2)
        short, first, last = ([row[0] for row in rows["train"] if row[1] == label] for label in (0, 1, 2))
        expected = [*short, *generator.sample(first, 4), *generator.sample(last, 4)]
        assert list(data.train.ids) == expected and len(short) == 2

    def test_backslashes_written_on_windows(self, tmp_path: Path) -> None:
        file = split_file(tmp_path, toy_rows())
        expected = load_data(file, shots=2)
        file.write_text(file.read_text().replace("/", "\\\\"))
        data = load_data(file, shots=2)
        assert [split.ids for split in (data.train, data.val, data.test)] == [
            split.ids for split in (expected.train, expected.val, expected.test)
        ]
        assert len(data.test.decode(PREPROCESSING)) == 6
        mixed = toy_rows()
        mixed["train"][-1][0] = mixed["train"][-1][0].replace("/", "\\")
        file.write_text(json.dumps(mixed))
        assert (
            load_data(file, shots="all").train.ids == load_data(split_file(tmp_path, toy_rows()), shots="all").train.ids
        )

    @pytest.mark.skipif(os.name == "nt", reason="a backslash cannot be part of a file's name there")
    def test_files_with_a_backslash_in_their_name(self, tmp_path: Path) -> None:
        rows = {split: [[i.replace("/", "\\"), k, n] for i, k, n in images] for split, images in toy_rows().items()}
        assert load_data(split_file(tmp_path, rows), shots=1).test.ids[0] == "water_lilly\\test0.png"

    @pytest.mark.parametrize(
        "image",
        ["/etc/a.png", "../../a.png", "cup/../../a.png", "..\\a.png", "C:\\a.png", "c:/a.png", "\\\\host\\a.png"],
    )
    def test_paths_out_of_the_folder_of_images(self, tmp_path: Path, image: str) -> None:
        file = split_file(tmp_path, toy_rows())
        for place in (0, -1):
            rows = toy_rows()
            rows["train"][place][0] = image
            file.write_text(json.dumps(rows))
            message = fails(file)
            assert str(file) in message and image in message and "out of its folder" in message

    def test_without_validation_it_comes_from_train(self, tmp_path: Path) -> None:
        rows = toy_rows()
        del rows["val"]
        data = load_data(split_file(tmp_path, rows), shots=3)
        assert per_class(data.val) == [3] * 3 and not set(data.val.ids) & set(data.train.ids)

    def test_errors(self, tmp_path: Path) -> None:
        assert "no folder or file" in fails(tmp_path / "split.json")
        bad = tmp_path / "bad.json"
        for text in ("{", "[]", '{"train": [["a.png", "x", "a"]]}', '{"train": [["a.png", 0]]}'):
            bad.write_text(text)
            assert "not a CoOp split file" in fails(bad)
        bad.write_text('{"train": [["a.png", 0, "a"]], "test": []}')
        assert "no test images" in fails(bad)

        def with_row(row: list[Any], split: str = "train") -> str:
            rows = toy_rows()
            rows[split].append(row)
            return fails(split_file(tmp_path, rows), shots=1)

        assert "but not 3" in with_row(["x/a.png", 7, "x"])
        assert "but not 0" not in with_row(["x/a.png", 7, "x"])
        assert "has the label -1 (the first below 0 is at x/a.png)" in with_row(["x/a.png", -1, "x"])
        assert "empty name for the class of label 3" in with_row(["x/a.png", 3, "_"])
        assert "both 'cup' and 'mug'" in with_row(["x/a.png", 1, "mug"])
        assert "2 classes named 'cup'" in with_row(["x/a.png", 3, "Cup"])
        assert "has no test images" in with_row(["x/a.png", 3, "mug"])
        assert "lists cup/train0.png 2 times" in with_row(["cup/train0.png", 1, "cup"], "test")
        assert "lists cup/train0.png 2 times" in with_row(["./ant/../cup/train0.png", 1, "cup"], "test")
        alone = {split: [row for row in rows if row[1] == 0] for split, rows in toy_rows().items()}
        assert "one class only (water lilly)" in fails(split_file(tmp_path / "alone", alone))
        lost = split_file(tmp_path / "lost", toy_rows(), images="a/b")
        assert "water_lilly/train0.png" in fails(lost)


def test_a_split_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = split_file(tmp_path, toy_rows())
    plain = load_data(file, shots=1)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_data(file, shots=1).train.ids == plain.train.ids


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A maker of tables: rows of images whose shade is 10 times the label."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()

    def make(count: int, labels: Any = None, image: str = "image", label: str = "label", as_text: bool = False) -> Any:
        names = ["hot_dog", "ice-cream", "tea"]
        numbers = [i % 3 for i in range(count)] if labels is None else labels
        encoded = []
        for number in numbers:
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (10 * max(number, 0), 0, 0)).save(buffer, "PNG")
            encoded.append({"bytes": buffer.getvalue(), "path": None})
        values = [names[n] for n in numbers] if as_text else numbers
        kind = datasets.Value("string") if as_text else datasets.ClassLabel(names=names)
        features = datasets.Features({image: datasets.Image(), label: kind, "size": datasets.Value("int64")})
        columns = {image: encoded, label: values, "size": [8] * len(numbers)}
        return datasets.Dataset.from_dict(columns, features=features)

    return make


class TestHub:
    def check(self, data: Any) -> None:
        assert data.class_names == ("hot dog", "ice cream", "tea")
        for images in (data.train, data.val, data.test):
            decoded = images.decode(PREPROCESSING)
            assert decoded.images[:, 0, 0, 0].tolist() == (10 * decoded.labels).tolist()

    def test_a_parquet_file_is_split(self, table: Any, tmp_path: Path) -> None:
        table(30).to_parquet(tmp_path / "food.parquet")
        data = load_data(tmp_path / "food.parquet", shots="all")
        self.check(data)
        assert [len(images) for images in (data.train, data.val, data.test)] == [18, 6, 6]
        assert data.name == "food" and data.train.ids[0].startswith("train/")

    def test_a_folder_of_parquet_files_has_splits(self, table: Any, tmp_path: Path) -> None:
        folder = tmp_path / "food"
        folder.mkdir()
        for split, count in {"train": 24, "validation": 15, "test": 6}.items():
            table(count).to_parquet(folder / f"{split}-00000-of-00001.parquet")
        data = load_data(folder, shots=4)
        self.check(data)
        assert [len(images) for images in (data.train, data.val, data.test)] == [12, 12, 6]

    def test_saved_to_disk(self, table: Any, tmp_path: Path) -> None:
        import datasets

        saved = datasets.DatasetDict(train=table(24), test=table(6))
        saved.save_to_disk(tmp_path / "saved")
        data = load_data(tmp_path / "saved", shots=4)
        self.check(data)
        assert [len(images) for images in (data.train, data.val, data.test)] == [12, 12, 6]
        table(30).save_to_disk(tmp_path / "single")
        assert len(load_data(tmp_path / "single", shots="all").test) == 6
        (tmp_path / "single" / "dataset_info.json").unlink()
        assert "cannot read the saved data set" in fails(tmp_path / "single")

    def test_text_labels_and_named_columns(self, table: Any, tmp_path: Path) -> None:
        table(30, image="photo", label="dish", as_text=True).to_parquet(tmp_path / "t.parquet")
        assert "columns=(image, label)" in fails(tmp_path / "t.parquet", shots=1)
        self.check(load_data(tmp_path / "t.parquet", shots=1, columns=("photo", "dish")))
        assert has_columns(str(tmp_path / "t.parquet"), ("photo", "dish"))
        assert not has_columns(str(tmp_path / "t.parquet"), ("photo", "label"))
        assert not has_columns("digits", ("photo", "dish"))
        assert "no column 'plate'" in fails(tmp_path / "t.parquet", columns=("photo", "plate"))
        assert "no class names" in fails(tmp_path / "t.parquet", columns=("photo", "size"))

    def from_hub(self, monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[Any]:
        import datasets

        calls: list[Any] = []

        def load_dataset(*arguments: Any) -> Any:
            calls.append(arguments)
            if isinstance(answer, Exception):
                raise answer
            return datasets.DatasetDict(answer)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    def test_hub_id_and_configuration(self, table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = self.from_hub(monkeypatch, {"train": table(24), "test": table(6)})
        data = load_data("hf:owner/food:small", shots=4)
        self.check(data)
        assert calls == [("owner/food", "small")]
        assert (data.name, data.source) == ("owner/food", "hf:owner/food:small")

    @pytest.mark.parametrize("hidden", [True, False])
    def test_validation_is_the_test_where_no_test_has_labels(
        self, table: Any, monkeypatch: pytest.MonkeyPatch, hidden: bool
    ) -> None:
        splits = {"train": table(24), "validation": table(9)}
        self.from_hub(monkeypatch, splits | ({"test": table(4, labels=[-1] * 4)} if hidden else {}))
        data = load_data("hf:owner/food", shots=2)
        self.check(data)
        assert len(data.test) == 9 and all(id_.startswith("validation/") for id_ in data.test.ids)
        assert all(id_.startswith("train/") for id_ in data.val.ids)
        assert "its validation split is the test split here" in data.description

    def test_errors(self, table: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.from_hub(monkeypatch, ConnectionError("cannot\nreach the hub"))
        assert "cannot load hf:owner/food (cannot reach the hub): check the name and" in fails("hf:owner/food")
        self.from_hub(monkeypatch, {"validation": table(6)})
        assert "no train" in fails("hf:owner/food")
        self.from_hub(monkeypatch, {"test": table(3, labels=[-1, -1, -1])})
        assert "test" in fails("hf:owner/food") and "-1" in fails("hf:owner/food")
        self.from_hub(monkeypatch, {"train": table(24), "test": table(3, labels=[0, -1, 2])})
        assert "split test of hf:owner/food has the label -1 in row 1," in fails("hf:owner/food")
        self.from_hub(monkeypatch, {"train": table(6, labels=[0, 0, 0, 1, 1, 1])})
        assert "'tea' of hf:owner/food has 0 images" in fails("hf:owner/food")

    def test_rows_without_a_label_are_named(self, table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        for feature in (datasets.Value("string"), datasets.ClassLabel(names=["cup", "mug"])):
            labels: list[Any] = ["cup", "mug"] if isinstance(feature, datasets.Value) else [0, 1]
            rows = table(12).remove_columns("label").add_column("label", [*labels, None] * 4, feature=feature)
            self.from_hub(monkeypatch, {"train": rows})
            message = fails("hf:owner/food")
            assert "split train" in message and "row 2 and 3 others" in message and "nan" not in message

    def test_labels_from_minus_one_are_named_with_their_row(self, table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.from_hub(monkeypatch, {"train": table(12, labels=[0, -1, 1] * 4)})
        message = fails("hf:owner/food")
        assert "label -1" in message and "row 1 and 3 others" in message and "0 to 2" in message

    def test_an_empty_class_name(self, table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        rows = table(24).cast_column("label", datasets.ClassLabel(names=["cup", " ", "tea"]))
        self.from_hub(monkeypatch, {"train": rows})
        assert "empty name for the class of label 1" in fails("hf:owner/food")

    def test_splits_that_name_their_classes_differently(self, table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        swapped = table(6).cast_column("label", datasets.ClassLabel(names=["tea", "ice-cream", "hot_dog"]))
        self.from_hub(monkeypatch, {"train": table(24), "test": swapped})
        message = fails("hf:owner/food")
        assert "'tea'" in message and "'hot_dog'" in message

    def test_parquet_files_that_count_the_classes_differently(self, table: Any, tmp_path: Path) -> None:
        import datasets

        table(24).to_parquet(tmp_path / "train-00000-of-00001.parquet")
        swapped = table(6).cast_column("label", datasets.ClassLabel(names=["tea", "ice-cream", "hot_dog"]))
        swapped.to_parquet(tmp_path / "test-00000-of-00001.parquet")
        message = fails(tmp_path)
        assert "'label'" in message and "'tea'" in message and "'hot_dog'" in message
        assert "train-00000-of-00001.parquet" in message and "test-00000-of-00001.parquet" in message

    def test_splits_in_a_column(self, table: Any, tmp_path: Path) -> None:
        words = ["train"] * 24 + ["Val"] * 6 + ["test"] * 6
        table(36).add_column("split", words).to_parquet(tmp_path / "food.parquet")
        data = load_data(tmp_path / "food.parquet", shots="all")
        self.check(data)
        assert [len(images) for images in (data.train, data.val, data.test)] == [24, 6, 6]
        table(36).add_column("split", [*words[:-1], "tset"]).to_parquet(tmp_path / "error.parquet")
        assert "tset" in fails(tmp_path / "error.parquet")

    def test_a_table_of_test_images_alone_is_a_test_set(
        self, table: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        table(6).add_column("split", ["test"] * 6).save_to_disk(tmp_path / "saved")
        self.from_hub(monkeypatch, {"test": table(6)})
        for source in (tmp_path / "saved", "hf:owner/food"):
            data = load_data(source, shots=1)
            assert (len(data.train), len(data.val), len(data.test)) == (0, 0, 6)
            with refused("test set without training images"):
                data.check_trainable()
            with refused(str(source), "not for training"):
                load_unlabelled(str(source))

    def test_a_table_of_training_images_alone_is_divided(self, table: Any, tmp_path: Path) -> None:
        table(30).add_column("split", ["train"] * 30).to_parquet(tmp_path / "food.parquet")
        data = load_data(tmp_path / "food.parquet", shots="all")
        assert [len(images) for images in (data.train, data.val, data.test)] == [18, 6, 6]

    def test_columns_of_other_kinds_are_named(self, table: Any, tmp_path: Path) -> None:
        import datasets

        rows = table(6)
        lists = datasets.Dataset.from_dict({"image": rows["image"][:], "label": [["tea"], ["cake"]] * 3})
        lists.to_parquet(tmp_path / "lists.parquet")
        rows.to_parquet(tmp_path / "food.parquet")
        for file, columns, words in (
            ("food.parquet", ("size", "label"), ["'size'", "int64", "data.columns"]),
            ("lists.parquet", ("image", "label"), ["'label'", "data.columns"]),
        ):
            with refused(str(tmp_path / file), *words):
                load_data(tmp_path / file, shots=1, columns=columns)
        with refused("'size'", "int64"):
            load_unlabelled(str(tmp_path / "food.parquet"), ("size", "label"), required=True)

    def test_a_split_column_of_other_words_is_ignored_with_a_warning(
        self, table: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        table(30).add_column("split", ["banana", "sundae"] * 15).to_parquet(tmp_path / "food.parquet")
        assert len(load_data(tmp_path / "food.parquet", shots="all").train) == 18
        assert "'split'" in caplog.text and "banana" in caplog.text

    def test_two_columns_of_encoded_images(self, table: Any, tmp_path: Path) -> None:
        import datasets

        rows = table(12)
        encoded = [{"bytes": b"x", "path": None}] * 12
        plain = {"image": encoded, "image_2": encoded, "label": rows["label"][:]}
        names = datasets.ClassLabel(names=["hot_dog", "ice-cream", "tea"])
        column = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        features = datasets.Features({"image": column, "image_2": column, "label": names})
        datasets.Dataset.from_dict(plain, features=features).to_parquet(tmp_path / "two.parquet")
        message = fails(tmp_path / "two.parquet")
        assert "image, image_2" in message and "data.columns" in message

    def test_class_names_that_are_numbers_are_warned_of_once(
        self, table: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        import datasets

        rows = table(24).cast_column("label", datasets.ClassLabel(names=["0", "1", "n01440764"]))
        self.from_hub(monkeypatch, {"train": rows})
        for _ in range(2):
            load_data("hf:owner/numbers", shots=1)
        assert [record.levelname for record in caplog.records if record.name == "apd"] == ["WARNING"]
        assert "hf:owner/numbers" in caplog.text and "0, 1, n01440764 (3 classes)" in caplog.text

    def test_a_broken_parquet_file(self, table: Any, tmp_path: Path) -> None:
        (tmp_path / "x.parquet").write_text("no parquet")
        assert "x.parquet as parquet" in fails(tmp_path / "x.parquet")

    def test_a_row_without_image_is_named(self, table: Any, tmp_path: Path) -> None:
        rows = table(30).to_list()
        for row in rows:
            row["image"] = None
        import datasets

        datasets.Dataset.from_list(rows, features=table(3).features).to_parquet(tmp_path / "x.parquet")
        train = load_data(tmp_path / "x.parquet", shots=1).train
        with refused(train.ids[0]):
            train.decode(PREPROCESSING)


def test_a_git_lfs_pointer_instead_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "images.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    for source in (tmp_path, tmp_path / "images.parquet"):
        assert "git lfs pull" in fails(source) and "images.parquet" in fails(source)
