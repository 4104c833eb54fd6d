"""Unlabelled images from tables: which rows are the data set's own, by whatever path a table is named."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apd.bench.identity import data_identity, unlabelled_identity
from apd.data import Dataset, load_data, same_source
from apd.data.load import load_unlabelled
from apd.data.settings import DataSettings
from tests.refusals import refused

datasets = pytest.importorskip("datasets")
NAMES = ["cat", "dog"]


def rows(count: int, seed: int = 0) -> Any:
    """A table of noise images of two classes."""
    random = np.random.default_rng(seed)

    def encoded() -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(buffer, "png")
        return buffer.getvalue()

    columns = {
        "image": [{"bytes": encoded(), "path": None} for _ in range(count)],
        "label": [row % 2 for row in range(count)],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_dict(columns, features=features)


def used(data: Dataset) -> set[str]:
    return {f"unlabelled/{id_}" for part in (data.train, data.val, data.test) for id_ in part.ids}


def test_rows_are_known_whether_the_folder_is_named_or_the_file_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    rows(40).to_parquet(folder / "train.parquet")
    (tmp_path / "link").symlink_to(folder)
    names = (folder, folder / "train.parquet", tmp_path / "link", tmp_path / "link" / "train.parquet")
    for source in names:
        for unlabelled in names:
            data = load_data(source, shots=2, validation=1, unlabelled=unlabelled)
            assert len(data.unlabelled) == 40 - 4 - 16 and not used(data) & set(data.unlabelled.ids)


def test_a_table_that_shares_some_files_with_the_data_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    for number, split in enumerate(("train", "test")):
        rows(20, number).to_parquet(folder / f"{split}.parquet")
    with refused("data.unlabelled", "test.parquet", "rest"):
        load_data(folder, shots=2, unlabelled=folder / "test.parquet")
    saved = tmp_path / "saved"
    datasets.DatasetDict({"train": rows(20), "test": rows(20, 1)}).save_to_disk(str(saved))
    with refused("data.unlabelled", str(saved), "rest"):
        load_data(saved, shots=2, unlabelled=saved / "test")
    assert len(load_data(saved, shots=2, validation=1, unlabelled=saved).unlabelled) == 20 - 6


def test_the_only_configuration_of_a_hub_data_set_may_be_named() -> None:
    assert same_source("hf:owner/name", "hf:owner/name:default")
    assert not same_source("hf:owner/name", "hf:owner/name:other")


def test_splits_of_any_of_their_names_are_used_and_others_are_left_out(tmp_path: Path) -> None:
    def saved(**splits: Any) -> Path:
        folder = tmp_path / "-".join(splits)
        datasets.DatasetDict(splits).save_to_disk(str(folder))
        return folder

    data = load_data(saved(Train=rows(8), dev=rows(4, 1), Testing=rows(6, 2)), shots="all")
    assert [len(part) for part in (data.train, data.val, data.test)] == [8, 4, 6]
    assert data.test.ids[0] == "Testing/0"
    unknown = rows(4, 3).map(lambda row: {"label": -1})
    data = load_data(saved(train=rows(30), test=rows(6, 2), unsupervised=unknown), shots=2)
    assert len(data.test) == 6
    with refused("validation", "dev", "one use"):
        load_data(saved(train=rows(8), validation=rows(4), dev=rows(4), test=rows(4)))


@pytest.mark.parametrize(
    ("splits", "taken"),
    [
        (("train", "eval", "test"), {"train"}),
        (("training", "holdout"), {"training"}),
        (("train", "unlabeled", "test"), {"train", "unlabeled"}),
        (("other", "Test"), {"other"}),
    ],
)
def test_of_splits_those_for_training_are_taken(tmp_path: Path, splits: tuple[str, ...], taken: set[str]) -> None:
    datasets.DatasetDict({split: rows(2) for split in splits}).save_to_disk(str(tmp_path / "saved"))
    found = load_unlabelled(str(tmp_path / "saved")).ids
    assert {id_.split("/")[1] for id_ in found} == taken


@pytest.mark.parametrize("name", ["[1]", "a*b", "a?b"])
def test_a_path_is_not_a_pattern(tmp_path: Path, name: str) -> None:
    for folder, count in ((name, 20), ("axb", 40), ("1", 40)):
        (tmp_path / folder).mkdir()
        rows(count).to_parquet(tmp_path / folder / "t.parquet")
    data = load_data(tmp_path / name / "t.parquet", shots="all")
    assert sum(map(len, (data.train, data.val, data.test))) == 20


@pytest.mark.parametrize("form", ["t.parquet", "parquet", "saved"])
def test_a_table_with_other_images_is_another_data_set_to_a_bench(tmp_path: Path, form: str) -> None:
    def identities(folder: Path, table: Any) -> tuple[str, str]:
        source = folder / form
        file = source / "train.parquet" if form == "parquet" else source
        file.parent.mkdir(parents=True, exist_ok=True)
        if form == "saved":
            table.save_to_disk(str(file))
        else:
            table.to_parquet(file)
        data_identity.cache_clear()
        unlabelled_identity.cache_clear()
        return data_identity(DataSettings(source=str(source))), unlabelled_identity(str(source), None)

    def larger(row: dict[str, Any]) -> dict[str, Any]:
        return {"image": row["image"].resize((12, 12))}

    table = rows(40)
    here = identities(tmp_path / "here", table)
    assert identities(tmp_path / "there", table) == here, "wherever it lies"
    if form == "saved":
        (tmp_path / "here" / form / "cache-1.arrow").touch()
        assert identities(tmp_path / "here", table) == here, "what datasets keeps beside a table is not the table"
    other = identities(tmp_path / "other", table.map(larger))
    assert other[0] != here[0] and other[1] != here[1]
