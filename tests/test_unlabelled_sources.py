"""Sources of unlabelled images: what is read, what is left out, and what a job's identity knows of them."""

from __future__ import annotations

import io
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import apd
from apd.bench import load_suite, make_plan
from apd.data import load_data
from apd.data.dataset import UNKNOWN
from apd.data.load import load_unlabelled
from apd.data.sources import class_names
from apd.models import DualEncoder
from apd.models.preprocessing import Preprocessing
from tests.command_line import Cli, Said
from tests.models import save_colours
from tests.refusals import check_error, contains, refused

PREPROCESSING = Preprocessing(8, 8, "crop", "bicubic", (0.5,) * 3, (0.5,) * 3)


def photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images in the folder itself, in a folder, and in folders below it."""
    for number, name in enumerate(("a.png", "x/b.png", "x/y/c.png", "z/d.jpg")):
        photo(tmp_path / "photos" / name, number)
    return tmp_path / "photos"


@pytest.fixture
def warned(said: Said) -> Said:
    """What is said, warnings that an earlier test has caused included."""
    class_names.warn.cache_clear()
    return said


def test_a_folder_is_read_to_its_depths_and_its_names_mean_nothing(photos: Path) -> None:
    images = load_unlabelled(str(photos))
    assert images.ids == tuple(f"unlabelled/{name}" for name in ("a.png", "x/b.png", "x/y/c.png", "z/d.jpg"))
    assert images.labels.tolist() == [UNKNOWN] * 4
    assert len(images.decode(PREPROCESSING)) == 4


def test_of_a_folder_with_splits_the_training_images_are_taken(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "test/cat/2.png", "val/cat/3.png"):
        photo(tmp_path / name)
    assert load_unlabelled(str(tmp_path)).ids == ("unlabelled/train/cat/1.png",)


@pytest.mark.parametrize(
    ("splits", "taken"),
    [
        (("train", "test", "unlabeled"), {"train", "unlabeled"}),
        (("Training", "val"), {"Training"}),
        (("unlabelled", "Test", "dev"), {"unlabelled"}),
        (("seg_train", "seg_test", "seg_pred"), {"seg_train", "seg_pred"}),
        (("train", "test_images"), {"train"}),
        (("train", "test_images", "unlabelled"), {"train", "unlabelled"}),
        (("seg_test", "more"), {"more"}),
    ],
)
def test_folders_for_validation_and_testing_are_left_out_and_named(
    tmp_path: Path, splits: tuple[str, ...], taken: set[str], warned: Said
) -> None:
    for split in splits:
        photo(tmp_path / split / "cat" / f"{split}.png")
    found = load_unlabelled(str(tmp_path)).ids
    assert {id_.split("/")[1] for id_ in found} == taken
    (told,) = warned()
    assert all(f"{split}/" in told for split in set(splits) - taken) and not any(f"{own}/" in told for own in taken)


def test_a_folder_of_test_images_alone_is_refused(tmp_path: Path) -> None:
    for split in ("test", "val"):
        photo(tmp_path / split / "cat.png")
    with refused(str(tmp_path), "test/", "val/"):
        load_unlabelled(str(tmp_path))


def test_folders_that_are_no_pair_of_splits_are_ordinary_folders(tmp_path: Path) -> None:
    for name in ("train/1.png", "bus/2.png", "plane/3.png"):
        photo(tmp_path / name)
    assert len(load_unlabelled(str(tmp_path))) == 3


def test_a_table_needs_no_labels(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")

    def encoded(seed: int) -> bytes:
        buffer = io.BytesIO()
        Image.open(photo(tmp_path / "one.png", seed)).save(buffer, "png")
        return buffer.getvalue()

    rows = {"picture": [{"bytes": encoded(i), "path": None} for i in range(3)], "note": ["a", "b", "c"]}
    table = datasets.Dataset.from_dict(rows).cast_column("picture", datasets.Image())
    table.to_parquet(str(tmp_path / "rows.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"unsupervised": table, "test": table}).save_to_disk(str(tmp_path / "splits"))
    for source, ids in (("rows.parquet", "train"), ("saved", "train"), ("splits", "unsupervised")):
        images = load_unlabelled(str(tmp_path / source))
        assert images.ids == tuple(f"unlabelled/{ids}/{row}" for row in range(3))
        assert images.labels.tolist() == [UNKNOWN] * 3
        assert torch.equal(
            images.decode(PREPROCESSING).images[1],
            load_unlabelled(str(tmp_path / "saved")).decode(PREPROCESSING).images[1],
        )
    datasets.DatasetDict({"test": table}).save_to_disk(str(tmp_path / "tested"))
    with refused("tested", "test"):
        load_unlabelled(str(tmp_path / "tested"))


def test_a_split_file_and_a_built_in_set_give_their_training_images(tmp_path: Path) -> None:
    rows = {split: [[f"{split}{i}.png", i, f"name{i}"] for i in range(2)] for split in ("train", "val", "test")}
    for split in rows.values():
        for name, _, _ in split:
            photo(tmp_path / name)
    (tmp_path / "split.json").write_text(json.dumps(rows))
    assert load_unlabelled(str(tmp_path / "split.json")).ids == ("unlabelled/train0.png", "unlabelled/train1.png")
    assert set(load_unlabelled("digits").ids) == {f"unlabelled/digits/{i:04d}" for i in range(700)}


def test_a_source_that_is_not_there_is_refused(tmp_path: Path, colours: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in ("nowhere/at/all", str(tmp_path / "empty")):
        with refused(source):
            load_data(colours, shots=2, unlabelled=source)


def test_unlabelled_images_stand_beside_the_shots(colours: Path, photos: Path) -> None:
    data, plain = load_data(colours, shots=2, unlabelled=photos), load_data(colours, shots=2)
    assert data.unlabelled.ids == load_unlabelled(str(photos)).ids
    assert (data.train.ids, data.val.ids, data.test.ids) == (plain.train.ids, plain.val.ids, plain.test.ids)
    assert data.classes("base").unlabelled.ids == data.unlabelled.ids
    few = load_data(colours, shots=2, unlabelled=photos, unlabelled_limit=2, seed=1)
    assert len(few.unlabelled) == 2 and few.settings.model_dump()["unlabelled"] == str(photos)


def test_shots_validation_and_test_images_are_left_out_and_counted(tmp_path: Path, colours: Path, warned: Said) -> None:
    """By the file, whatever links lead to it."""
    data = load_data(colours, shots=2, validation=1)
    folder = photo(tmp_path / "more" / "new.png").parent
    for part, images in (("shot", data.train), ("validation", data.val), ("test", data.test)):
        (folder / f"{part}.png").symlink_to(str(images.sources[0]))
    (tmp_path / "whole").symlink_to(colours)
    found = load_data(colours, shots=2, validation=1, unlabelled=folder)
    assert found.unlabelled.ids == ("unlabelled/new.png",)
    assert [contains(line, "3", "4", "more") for line in warned()] == [True]
    everything = load_data(colours, shots=2, validation=1, unlabelled=tmp_path / "whole").unlabelled
    rest = load_data(colours, shots=2, validation=1, unlabelled="rest").unlabelled
    assert set(everything.ids) == {f"unlabelled/{id_}" for id_ in rest.ids}


def test_images_of_the_data_set_itself_are_divided_by_their_class(colours: Path, tmp_path: Path, said: Said) -> None:
    """By the number of the row as by the file; those from elsewhere stay, and are told of."""
    whole = load_data("digits", shots="all")
    known = dict(zip(whole.train.ids, whole.train.labels.tolist(), strict=True))
    for which, first in (("base", 0), ("new", 5)):
        found = load_data("digits", shots=4, classes=which, unlabelled="digits").unlabelled
        assert found.ids and {known[id_.removeprefix("unlabelled/")] - first for id_ in found.ids} == set(range(5))
    rest = load_data(colours, shots=2, classes="base", unlabelled="rest").unlabelled
    (tmp_path / "whole").symlink_to(colours)
    for source in (colours, tmp_path / "whole"):
        same = load_data(colours, shots=2, classes="base", unlabelled=source).unlabelled
        assert set(same.ids) == {f"unlabelled/{id_}" for id_ in rest.ids}
    assert not [line for line in said() if "base" in line]
    photo(tmp_path / "more" / "new.png")
    (tmp_path / "more" / "known.png").symlink_to(str(rest.sources[0]))
    assert len(load_data(colours, shots=2, classes="base", unlabelled=tmp_path / "more").unlabelled) == 2
    assert [contains(line, "1", "2", "base") for line in said() if "base" in line] == [True]


def test_a_limit_whose_images_are_all_of_other_classes_is_refused() -> None:
    for seed in range(3):
        settings = {"shots": 4, "unlabelled": "rest", "unlabelled_limit": 1, "seed": seed}
        label = int(load_data("digits", **settings).unlabelled.labels)
        has, lacks = ("base", "new") if label < 5 else ("new", "base")
        assert len(load_data("digits", classes=has, **settings).unlabelled) == 1
        with refused("data.unlabelled_limit", f"data.classes={lacks}", "rest", "1"):
            load_data("digits", classes=lacks, **settings)


def test_rows_of_the_same_table_are_told_apart_by_their_number() -> None:
    data = load_data("digits", shots=2, validation=1, unlabelled="digits")
    used = {f"unlabelled/{id_}" for part in (data.train, data.val, data.test) for id_ in part.ids}
    assert len(data.unlabelled) == 700 - 20 and not used & set(data.unlabelled.ids)


def test_a_source_of_nothing_but_known_images_is_refused(tmp_path: Path, colours: Path) -> None:
    test = load_data(colours, shots=2).test
    for number, source in enumerate(test.sources):
        (tmp_path / f"{number}.png").symlink_to(str(source))
    with refused(str(len(test)), "rest"):
        load_data(colours, shots=2, unlabelled=tmp_path)


def test_a_suite_finds_them_below_its_root_and_knows_them_by_their_content(
    tmp_path: Path, clip_folder: Path, photos: Path
) -> None:
    save_colours(tmp_path / "sets" / "colours")

    def plan_of(root: Path, source: str, **extra: object) -> list[tuple[str, str | None]]:
        section = {"unlabelled": source, **extra}
        file = tmp_path / "suite.yaml"
        file.write_text(
            f"model: {clip_folder}\ndata: {{c: {{source: sets/colours, shots: 2}}}}\n"
            f"methods: {{a: {{name: advvlp, data: {json.dumps(section)}}}}}\n"
            "blocks: [{protocol: few-shot, data: c, methods: a}]\n"
        )
        plan = make_plan(load_suite(file, root=root))
        return [(id_, job.config.data.unlabelled if job.config else None) for id_, job in plan.jobs.items()]

    other = tmp_path / "other"
    shutil.copytree(tmp_path / "sets", other / "sets")
    shutil.copytree(photos, other / "elsewhere" / "pictures")
    (here,), (there,) = plan_of(tmp_path, "./photos"), plan_of(other, "elsewhere/pictures")
    assert here[1] == str(photos) and there[1] == str(other / "elsewhere" / "pictures")
    assert here[0] == there[0]
    assert plan_of(tmp_path, "./photos", unlabelled_limit=2)[0][0] != here[0]
    photo(photos / "one-more.png")
    from apd.bench.identity import unlabelled_identity

    unlabelled_identity.cache_clear()
    assert plan_of(tmp_path, "./photos")[0][0] != here[0]
    with refused("elsewhere/nowhere"):
        plan_of(other, "elsewhere/nowhere")


@pytest.mark.parametrize("memory_gb", [4, 0])
def test_manifest_and_card_say_how_many_there_are_of_which_source(
    tmp_path: Path, shallow: DualEncoder, colours: Path, photos: Path, memory_gb: float
) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    data = load_data(colours, shots=2, unlabelled=photos, memory_gb=memory_gb)
    train = partial(apd.train, shallow, data, method="trades", epochs=1, device="cpu")
    with refused("broken.png"):
        train(output=tmp_path / "run")
    run = train(output=tmp_path / "run", skip_bad_images=True)
    assert run.manifest["data"]["unlabelled_images"] == 4
    assert run.manifest["data"]["unlabelled_source"] == str(photos)
    left_out = run.manifest["left_out"]
    assert (left_out["unlabelled_images"], left_out["ids"]) == (1, ["unlabelled/broken.png"])
    (row,) = [line for line in (run.path / "README.md").read_text().splitlines() if "unlabelled images" in line]
    assert contains(row, "4", "5", "1", str(photos))


def test_a_run_without_unlabelled_images_does_not_mention_them(trained: Path) -> None:
    manifest = json.loads((trained / "run.json").read_text())
    assert not any("unlabelled" in key for part in ("data", "left_out") for key in manifest[part])
    assert "unlabelled" not in (trained / "README.md").read_text()


def test_columns_may_be_those_of_the_unlabelled_table_alone(tmp_path: Path, colours: Path) -> None:
    photo(tmp_path / "new.png")
    (tmp_path / "more.csv").write_text("bild,note\nnew.png,none\n")
    with refused("data.columns", "bild"):
        load_data(colours, shots=2, unlabelled=tmp_path / "more.csv")
    data = load_data(colours, shots=2, unlabelled=tmp_path / "more.csv", columns=("bild", "label"))
    assert data.unlabelled.ids == ("unlabelled/new.png",)
    (tmp_path / "more.csv").unlink()
    assert data.settings.for_evaluation().load().test.ids == data.test.ids, "a run is evaluated without the table"
    with refused("columns", str(colours)):
        load_data(colours, shots=2, unlabelled="rest", columns=("bild", "label"))
    (tmp_path / "other.csv").write_text("image,note\nnew.png,none\n")
    with refused("bild", "image"):
        load_data(colours, shots=2, unlabelled=tmp_path / "other.csv", columns=("bild", "label"))
    with refused("columns", str(colours)):
        load_data(colours, shots=0, class_names=("red", "blue"), columns=("bild", "label"))


def test_a_path_called_rest_is_a_folder(tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "rest" / "new.png")
    assert load_data(colours, shots=2, unlabelled=Path("rest")).unlabelled.ids == ("unlabelled/new.png",)
    assert len(load_data(colours, shots=2, unlabelled="rest").unlabelled) > 1


def test_an_empty_name_is_refused(cli: Cli, colours: Path, tmp_path: Path) -> None:
    check_error(cli("train", colours, "--unlabelled", "", "--output", tmp_path / "run"), ["--unlabelled is empty"])
    with refused("data.unlabelled", "rest"):
        load_data(colours, shots=2, unlabelled="")
    with refused("data.source", "names no images"):
        load_data("", shots=2)


def test_a_run_folder_among_the_unlabelled_images_is_refused(cli: Cli, colours: Path, photos: Path) -> None:
    answer = cli("train", colours, "--unlabelled", photos, "--output", photos / "run")
    check_error(answer, ["--output", str(photos)])
