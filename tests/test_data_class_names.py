"""classes.txt in the forms in which such lists are published, and class names that say nothing."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from apd.data import load_data
from apd.data.sources.class_list import names_alone, read_class_names
from apd.data.sources.class_names import nameless
from apd.errors import InputError

from .command_line import QUICK, Cli
from .models import save_colours
from .refusals import check_error

NUMBERS = sorted(str(number) for number in range(1, 13))
ANIMALS = ("ant", "bear", "cat", "dog", "elk", "fox", "gnu", "hen", "ibex", "jay", "kiwi", "lynx")


def named(tmp_path: Path, lines: Sequence[str], folders: Sequence[str]) -> dict[str, str]:
    file = tmp_path / "classes.txt"
    file.write_text("".join(f"{line}\n" for line in lines))
    return dict(zip(folders, read_class_names(file, folders), strict=True))


def refused(tmp_path: Path, lines: Sequence[str], folders: Sequence[str]) -> str:
    with pytest.raises(InputError) as caught:
        named(tmp_path, lines, folders)
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path / "classes.txt") in message
    return message


def test_names_without_folders_follow_numbers_by_value(tmp_path: Path) -> None:
    expected = {str(number): name for number, name in enumerate(ANIMALS, 1)}
    assert named(tmp_path, ANIMALS, NUMBERS) == expected
    assert named(tmp_path, ["low", "mid", "high"], ["-1", "0", "1"]) == {"-1": "low", "0": "mid", "1": "high"}
    assert named(tmp_path, ["a", "b", "c"], ["0.5", "10", "2"]) == {"0.5": "a", "2": "b", "10": "c"}


def test_the_label_order_stays_that_of_the_text(tmp_path: Path) -> None:
    for number in range(1, 13):
        folder = tmp_path / str(number)
        folder.mkdir()
        for index in range(5):
            Image.new("RGB", (8, 8), (number, index, 0)).save(folder / f"{index}.png")
    (tmp_path / "classes.txt").write_text("\n".join(ANIMALS))
    data = load_data(tmp_path, shots=1)
    assert data.class_names == tuple(ANIMALS[int(number) - 1] for number in NUMBERS)
    assert [id_.split("/")[0] for id_ in data.train.ids] == NUMBERS


def test_other_names_follow_the_text(tmp_path: Path) -> None:
    assert named(tmp_path, ["x", "y", "z"], ["a10", "b9", "c"]) == {"a10": "x", "b9": "y", "c": "z"}
    message = refused(tmp_path, ANIMALS, sorted(f"class{number}" for number in range(1, 13)))
    assert "class1, class10, class11" in message and "class1, class2, class3" in message
    padded = [f"class{number:02d}" for number in range(1, 13)]
    assert list(named(tmp_path, ANIMALS, padded).values()) == list(ANIMALS)


@pytest.mark.parametrize(
    ("lines", "folders", "names"),
    [
        (["dog", "ant"], ["ant", "dog"], ["ant", "dog"]),
        (["white_shark", "ant"], ["ant", "white_shark"], ["ant", "white shark"]),
        (["White Shark", "Ant"], ["ant", "white-shark"], ["Ant", "White Shark"]),
        (["002.Owl", "001.Black_Tern"], ["001.Black_Tern", "002.Owl"], ["Black Tern", "Owl"]),
        (["2 002.Owl", "1 001.Black_Tern"], ["001.Black_Tern", "002.Owl"], ["Black Tern", "Owl"]),
        (["1\tbear", "2\tant"], ["ant", "bear"], ["ant", "bear"]),
        (["1 white_shark", "2 ant"], ["ant", "white_shark"], ["ant", "white shark"]),
        (["n02 bear", "n01 ant"], ["n01", "n02"], ["ant", "bear"]),
        (["n00000002 bear", "n00000001 ant"], ["ant", "bear"], ["ant", "bear"]),
        (
            ["n01440764 tench, Tinca tinca", "n01443537\tgoldfish"],
            ["n01440764", "n01443537"],
            ["tench, Tinca tinca", "goldfish"],
        ),
        (
            ["n01443537 goldfish", "n01440764 tench", "n01484850 shark"],
            ["n01440764", "n01443537"],
            ["tench", "goldfish"],
        ),
        (["hot dog,Hot Dog", "tea,Green Tea"], ["hot dog", "tea"], ["Hot Dog", "Green Tea"]),
        (["10: jay", "9: ibex"], ["10", "9"], ["jay", "ibex"]),
        (["9\tibex", "10\tjay"], ["009", "010"], ["ibex", "jay"]),
        (["1. tench", "0. shark"], ["x", "y"], ["shark", "tench"]),
        (["2,tench", "1,shark"], ["x", "y"], ["shark", "tench"]),
        (["2012 Audi", "2012 BMW"], ["audi12", "bmw12"], ["2012 Audi", "2012 BMW"]),
        (["7 eleven", "cafe"], ["shop", "tea"], ["7 eleven", "cafe"]),
        (["airplane", "cat"], ["aeroplane", "cat"], ["airplane", "cat"]),
        (["ship\t0", "cat\t1"], ["cat", "ship"], ["cat", "ship"]),
        (["tench,1", "shark,0"], ["x", "y"], ["shark", "tench"]),
        (["tench:1", "shark:2"], ["x", "y"], ["tench", "shark"]),
        (["tench,0", "shark,7"], ["x", "y"], ["tench,0", "shark,7"]),
        (['1,"tench, Tinca"', '0,"shark"'], ["0", "1"], ["shark", "tench, Tinca"]),
        (['"tench"', '"shark"'], ["x", "y"], ["tench", "shark"]),
        (["\uff11 airplane", "\uff12 cat"], ["1", "2"], ["airplane", "cat"]),
        (["b\u00e9b\u00e9", "\u00e2ne"], ["a\u0302ne", "be\u0301be\u0301"], ["\u00e2ne", "b\u00e9b\u00e9"]),
        (["coin_a,1 euro", "coin_b,2 euros"], ["coin_a", "coin_b"], ["1 euro", "2 euros"]),
        (["cat,wild cat", "dog,hot dog"], ["cat", "dog"], ["wild cat", "hot dog"]),
        (["wild cat", "hot dog"], ["cat", "dog"], ["wild cat", "hot dog"]),
    ],
)
def test_published_forms(tmp_path: Path, lines: list[str], folders: list[str], names: list[str]) -> None:
    assert list(named(tmp_path, lines, folders).values()) == names


@pytest.mark.parametrize(
    ("lines", "folders", "said"),
    [
        (["n01440764 tench", "n0144353 goldfish"], ["n01440764", "n01443537"], ["'n0144353 goldfish'", "'n01443537'"]),
        (
            ["n01440764 tench", "n01443538 goldfish"],
            ["n01440764", "n01443537"],
            ["'n01443538 goldfish'", "'n01443537'"],
        ),
        (["n00000001 tench", "n00000002 shark"], ["x", "y"], ["'n00000001 tench'"]),
        (["1 ant", "2 bear"], ["0", "1"], ["'2 bear'", "'0'"]),
        (["1 001.Tern", "2 002.Olw"], ["001.Tern", "002.Owl"], ["'002.Olw'"]),
        (["1 ant", "2 bear", "cat"], ["x", "y", "z"], ["'cat'"]),
        (["1 ant", "2bear"], ["ant", "bear"], ["'2bear'"]),
        (["1 n00000001", "2 n0000002"], ["n00000001", "n00000002"], ["'n0000002'"]),
        (["001", "02", "003"], ["001", "002", "003"], ["'02'"]),
        (["10 ant", "20 bear"], ["x", "y"], ["'10 ant', '20 bear'"]),
        (["dog", "ants", "cat"], ["ant", "cat", "dog"], ["'ants'"]),
        (["ant,", "bear,Bear"], ["ant", "bear"], ["'ant'"]),
        (["oak tree", "cat"], ["cat", "oak"], ["'cat'"]),
        (["n01440764 449 tench", "n01443537 450 goldfish"], ["n01440764", "n01443537"], ["'n01440764 449 tench'"]),
        (["n01440764,449,tench", "n01443537,450,goldfish"], ["n01440764", "n01443537"], ["'n01440764,449,tench'"]),
        (["airplane 0", "cat 1"], ["0", "1"], ["'airplane 0'"]),
        (["cat,1", "airplane,0"], ["0", "1"], ["'cat,1'"]),
        (["0 cat 1", "1 airplane 0"], ["0", "1"], ["'0 cat 1'"]),
        (["tench n01440764", "goldfish n01443537"], ["n01440764", "n01443537"], ["'tench n01440764'"]),
        (["five", "ten", "fifty"], ["10km", "50km", "5km"], ["10km, 50km, 5km", "5km, 10km, 50km"]),
        (["a", "b", "c"], ["100-200", "20-30", "30-100"], ["20-30, 30-100, 100-200"]),
        (["a", "b", "c"], ["11to15", "1to5", "6to10"], ["1to5, 6to10, 11to15"]),
        (["a", "b", "c"], ["1.10.2020", "1.2.2020", "1.3.2020"], ["1.2.2020, 1.3.2020, 1.10.2020"]),
        (["a", "b", "c"], ["1.10", "1.2", "1.9"], ["1.2, 1.9, 1.10"]),
        (["a", "b"], ["Zebra", "ant"], ["ant, Zebra"]),
    ],
)
def test_a_file_that_fits_in_part_is_refused_by_its_lines(
    tmp_path: Path, lines: list[str], folders: list[str], said: list[str]
) -> None:
    message = refused(tmp_path, lines, folders)
    assert all(words in message for words in said)


@pytest.mark.parametrize(
    ("names", "said"), [(["s001", "s002"], True), (["4f2a9c", "77ab01"], True), (["b52", "cafe"], False)]
)
def test_names_that_say_nothing(names: list[str], said: bool) -> None:
    assert nameless(names) == (names if said else [])


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """Class folders that are called by numbers."""
    folder = save_colours(tmp_path / "colours")
    for number, name in enumerate(("red", "green", "blue"), 1):
        (folder / name).rename(folder / str(number))
    return folder


def test_the_command_line_warns_of_numbers_once(cli: Cli, numbered: Path, tmp_path: Path) -> None:
    shown = cli("train", numbered, "--model", "glyphs", *QUICK, "--output", tmp_path / "run")
    warnings = [line for line in shown.err.splitlines() if "1, 2, 3 (3 classes)" in line and "classes.txt" in line]
    assert shown.code == 0 and len(warnings) == 1
    assert str(numbered / "classes.txt") in warnings[0] and "FOLDER,name" in warnings[0]


def test_a_run_inside_the_data_is_refused(cli: Cli, numbered: Path) -> None:
    check_error(
        cli("train", numbered, "--model", "glyphs", *QUICK, "--output", numbered / "run"), [str(numbered / "run")]
    )
    assert not (numbered / "run").exists()


def test_no_warning_with_names(numbered: Path, caplog: pytest.LogCaptureFixture) -> None:
    (numbered / "classes.txt").write_text("red\ngreen\nblue\n")
    assert load_data(numbered, shots=1).class_names == ("red", "green", "blue")
    assert not caplog.records


def test_imagenet_s_names_are_offered_for_wordnet_ids(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_colours(tmp_path / "fish", classes=("red", "green"))
    (folder / "red").rename(folder / "n01440764")
    (folder / "green").rename(folder / "n01443537")
    monkeypatch.delenv("APD_DATA", raising=False)
    load_data(folder, shots=1)
    assert "n01440764, n01443537 (2 classes)" in caplog.text and "$APD_DATA/imagenet/classnames.txt" in caplog.text
    listing = tmp_path / "sets" / "imagenet" / "classnames.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("n01440764 tench\nn01443537 goldfish\nn01484850 great white shark\n")
    monkeypatch.setenv("APD_DATA", str(tmp_path / "sets"))
    load_data(folder, shots=1)
    assert str(listing) in caplog.text and str(folder / "classes.txt") in caplog.text
    shutil.copy(listing, folder / "classes.txt")
    assert load_data(folder, shots=1).class_names == ("tench", "goldfish")


@pytest.mark.parametrize(
    "lines",
    [
        ["cat,0", "dog,1", "red fox,2"],
        ["red fox\t3", "cat\t1", "dog\t2"],
        ["- cat", "- dog", "- red fox"],
        ["cat", "dog", "red fox"],
    ],
)
def test_class_names_stand_alone_without_what_counts_them(lines: list[str]) -> None:
    assert names_alone(lines) == ["cat", "dog", "red fox"]


def test_numbers_that_do_not_count_belong_to_the_name() -> None:
    for names in (["Boeing 737", "Airbus 380"], ["digit 0", "digit 1"], ["formula 1", "level 2"], ["a,0", "a,1"]):
        assert names_alone(names) == names
    assert names_alone(["- cat: 0", "- dog: 1"]) == ["cat", "dog"]
