"""Tables of paths and classes: what is read, what divides them, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from apd.data import load_data
from apd.data.load import load_unlabelled
from tests.command_line import Cli, Said
from tests.refusals import check_error, refused

COLOURS = {"red fox": (200, 0, 0), "blue whale": (0, 0, 200)}
ROWS = [(f"img/{name.split()[0]}{n}.png", name) for name in COLOURS for n in range(6)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    for file, name in ROWS:
        Image.new("RGB", (8, 8), COLOURS[name]).save(tmp_path / file)
    return tmp_path


def written(folder: Path, head: str, rows: list[str], name: str = "t.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes("\n".join([head, *rows]).encode(encoding))
    return path


@pytest.mark.parametrize(
    ("head", "cell", "name", "encoding"),
    [
        ("path,label", "{},{}", "t.csv", "utf-8"),
        ("Image;Class", '"{}"; "{}"', "t.csv", "utf-8-sig"),
        ("id\tfilename\tcategory", "7\t{}\t{}", "t.tsv", "utf-8"),
    ],
)
def test_a_table_is_a_data_set_of_its_classes(folder: Path, head: str, cell: str, name: str, encoding: str) -> None:
    data = load_data(written(folder, head, [cell.format(*row) for row in ROWS], name, encoding), shots="all")
    assert data.class_names == ("blue whale", "red fox")
    labels = {
        id_: int(label)
        for part in (data.train, data.val, data.test)
        for id_, label in zip(part.ids, part.labels, strict=True)
    }
    assert labels == {file: data.class_names.index(name) for file, name in ROWS}
    assert len(data.test) == len(data.val) == 2
    assert {source for source in data.test.sources} == {folder / id_ for id_ in data.test.ids}


@pytest.mark.parametrize("end", ["\u2028", "\x85", "\x0c"])
def test_ends_of_lines_are_those_of_tables(folder: Path, end: str) -> None:
    rows = [f"{file},{name},a{end}b" for file, name in ROWS]
    assert len(load_data(written(folder, "sep=,\r\npath,label,note", rows), shots="all").class_names) == 2


def test_lines_keep_their_numbers_below_a_separator(folder: Path) -> None:
    rows = [f"{file};{name}" for file, name in ROWS]
    with refused("line 4"):
        load_data(written(folder, "sep=;\npath;label", [rows[0], f"{rows[1]};more", *rows[2:]]), shots="all")


def test_a_column_of_splits_of_another_name_is_told(folder: Path, said: Said) -> None:
    rows = [f"{file},{name},{'train' if place % 2 else 'test'}" for place, (file, name) in enumerate(ROWS)]
    load_data(written(folder, "path,label,subset", rows), shots="all")
    assert any("'subset'" in line and "split" in line for line in said())
    load_data(
        written(folder, "path,label,subset", [f"{file},{name},train" for file, name in ROWS], "u.csv"), shots="all"
    )
    assert len(said()) == 1


def test_images_in_two_folders_beside_a_table_are_not_guessed(folder: Path) -> None:
    table = written(folder, "path,label", [f"{file.removeprefix('img/')},{name}" for file, name in ROWS])
    (folder / "img").rename(folder / ".thumbs")
    with refused("red0.png"):
        load_data(table, shots=1)
    shutil.copytree(folder / ".thumbs", folder / "photos")
    assert load_data(table, shots=1).train.sources[0].parent == folder / "photos"
    (folder / "pictures").symlink_to(folder / "photos")
    assert len(load_data(table, shots=1).train) == 2, "one folder by two names"
    shutil.copytree(folder / "photos", folder / "masks")
    with refused("red0.png", "masks/", "photos/"):
        load_data(table, shots=1)


@pytest.mark.parametrize("column", ["split", "Split", "SPLIT"])
def test_a_column_of_splits_divides_it(folder: Path, column: str) -> None:
    splits = ["train", "Training", "train", "val", "test", "test"] * 2
    rows = [f"{file},{name},{split}" for (file, name), split in zip(ROWS, splits, strict=True)]
    table = written(folder, f"file,class,{column}", rows)
    data = load_data(table, shots=2)
    assert set(data.test.ids) == {"img/red4.png", "img/red5.png", "img/blue4.png", "img/blue5.png"}
    assert set(data.val.ids) == {"img/red3.png", "img/blue3.png"}
    assert set(load_unlabelled(str(table)).ids) == {
        f"unlabelled/img/{colour}{n}.png" for colour in ("red", "blue") for n in range(3)
    }


def test_a_table_of_test_images_alone_is_a_test_set(folder: Path) -> None:
    table = written(folder, "path,label,split", [f"{file},{name},Test" for file, name in ROWS])
    data = load_data(table, shots=1)
    assert (len(data.train), len(data.val), len(data.test)) == (0, 0, len(ROWS))
    with refused("test set without training images", f"--data {table}"):
        data.check_trainable()
    with refused("no train rows"):
        load_unlabelled(str(table))
    with refused("no train rows"):
        load_data(written(folder, "path,label,split", [f"{file},{name},val" for file, name in ROWS]), shots=1)
    whole = load_data(written(folder, "path,label,split", [f"{file},{name},train" for file, name in ROWS]), shots="all")
    assert len(whole.train) and len(whole.test) == 2


def test_columns_are_named_where_they_cannot_be_told(folder: Path) -> None:
    table = written(folder, "path,seen by,animal", [f"{file},me,{name}" for file, name in ROWS])
    with refused("t.csv", "animal", "data.columns", "columns="):
        load_data(table)
    assert load_data(table, columns=("path", "animal")).class_names == ("blue whale", "red fox")
    with refused("t.csv", "'beast'", "animal"):
        load_data(table, columns=("path", "beast"))


def test_images_may_lie_in_a_folder_beside_and_need_no_label_if_unlabelled(folder: Path) -> None:
    table = written(folder, "image", [file.removeprefix("img/") for file, _ in ROWS])
    images = load_unlabelled(str(table))
    assert len(images) == 12 and images.sources[0] == folder / "img" / "red0.png"


@pytest.mark.parametrize(
    ("head", "rows", "names"),
    [
        ("path,label", ["img/red0.png,a", "img/red0.png,b"], ["img/red0.png", "lines 2 and 3"]),
        (
            "path,label,split",
            ["img/red0.png,a,train", "img/red1.png,b,test", "img/red0.png,a,test"],
            ["lines 2 and 4", "one split"],
        ),
        (
            "path,label,split",
            ["img/red0.png,a,train", "img/red1.png,b,test", "./img/../img/red0.png,a,test"],
            ["lines 2 and 4", "one split"],
        ),
        ("path,label", ["img/red0.png,a", "img/red1.png,"], ["'label'", "line 3"]),
        ("path,label", ["img/red0.png,a", "img/red1.png,a,b"], ["line 3", "3 values", "2 columns", "','"]),
        ("path,label", ["../img/red0.png,a", "img/red1.png,b"], ["../img/red0.png"]),
        ("path,label", ["/etc/passwd,a", "img/red1.png,b"], ["/etc/passwd"]),
        ("path,label", ["img/none.png,a", "img/red1.png,b"], ["img/none.png"]),
        ("path,label", ['"img/red0.png,a'], ["t.csv"]),
        ("path,label", [], ["t.csv"]),
        ("path,image,label", ["img/red0.png,img/red0.png,a"], ["path", "image", "data.columns"]),
        ("path,label,split", ["img/red0.png,a,train", "img/red1.png,a,other"], ["'split'", "other"]),
        ("path,label,split", ["img/red0.png,a,train", "img/red1.png,a,val"], ["'split'", "test"]),
    ],
)
def test_what_is_not_such_a_table_is_refused_in_one_line(
    folder: Path, head: str, rows: list[str], names: list[str]
) -> None:
    with refused("t.csv", *names):
        load_data(written(folder, head, rows))


def test_other_encodings_are_refused(folder: Path) -> None:
    with refused("t.csv", "UTF-8"):
        load_data(written(folder, "path,label", ["img/r\xe9d.png,a"], encoding="latin-1"))


def test_many_rows_with_a_late_repetition_take_no_time(folder: Path) -> None:
    rows = [f"img/{n}.png,a" for n in range(100_000)]
    with refused("img/99999.png"):
        load_data(written(folder, "path,label", [*rows, rows[-1]]))


def test_a_table_that_is_not_there_is_missed_by_name(folder: Path, cli: Cli) -> None:
    table = written(folder, "path,label", [f"{file},{name}" for file, name in ROWS])
    check_error(cli("train", str(table.with_name("T2.csv"))), ["T2.csv"])
