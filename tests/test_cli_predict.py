"""`apd predict`: folders and patterns, formats, answers as they come, and what has no answer at the end."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import apd
from apd.data import decode
from apd.predict import classify_files, find_images, predict_files

from .command_line import Cli


@pytest.fixture
def photos(colours: Path, tmp_path: Path) -> Path:
    """Three good images in two folders, and what is no image."""
    folder = tmp_path / "new photos"
    for name in ("a.png", "deep/b.PNG", "deep/er/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(colours / "red" / "000.png", folder / name)
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "deep" / "loop").symlink_to(folder)
    return folder


def relative(files: list[Path], folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in files]


def test_folders_and_patterns_lead_to_images(photos: Path) -> None:
    everything = ["a.png", "deep/b.PNG", "deep/er/c.png"]
    files, bad = find_images([photos])
    assert (relative(files, photos), bad) == (everything, [])
    assert relative(find_images([f"{photos}/*.png"])[0], photos) == ["a.png"]
    (photos / "deep" / "loop").unlink()
    assert relative(find_images([f"{photos}/d*"])[0], photos) == everything[1:]
    assert relative(find_images([f"{photos}/**/c.png"])[0], photos) == ["deep/er/c.png"]
    for pattern in (f"{photos}/**", f"{photos}/**/*"):
        found = relative(find_images([pattern])[0], photos)
        assert len(set(found)) == len(found) and set(everything) <= set(found)
    (photos / "zlink").symlink_to(photos / "deep")
    assert relative(find_images([photos])[0], photos) == everything, "a folder and a link to it beside it"
    (photos / "zlink").unlink()
    assert find_images([""]) == ([], ["an empty name leads to no image."])
    (photos / "z.MPO").touch()
    (photos / "favicon.ico").touch()
    assert relative(find_images([photos])[0], photos) == ["a.png", "z.MPO", *everything[1:]], "what can be read"
    (photos / "[1].png").touch()
    assert relative(find_images([photos / "[1].png"])[0], photos) == ["[1].png"], "a file that is there is no pattern"


def test_paths_that_lead_to_nothing_are_told(photos: Path) -> None:
    (photos / "empty").mkdir()
    given = [photos / "none.png", photos / "a.png", photos / "empty", f"{photos}/*.gif"]
    files, bad = find_images(given)
    assert files == [photos / "a.png"]
    assert [word in line for word, line in zip(("none.png", "empty", "*.gif"), bad, strict=True)] == [True] * 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_told(photos: Path) -> None:
    (photos / "deep").chmod(0)
    try:
        files, bad = find_images([photos])
    finally:
        (photos / "deep").chmod(0o755)
    assert relative(files, photos) == ["a.png"] and len(bad) == 1 and "deep" in bad[0]


def test_what_is_given_already_is_not_the_way_out(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "zero.png").touch()
    without, skipping = (cli("predict", run, tmp_path / "zero.png", *more) for more in ((), ("--skip-bad-images",)))
    assert without.code == skipping.code == 2
    assert "--skip-bad-images" in without.err and "--skip-bad-images" not in skipping.err


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_good_files_are_answered_whatever_the_others_are(
    cli: Cli, run: Path, photos: Path, form: str, skip: bool
) -> None:
    (photos / "broken.png").write_bytes(b"x")
    (photos / "IMG_1.heic").write_bytes(b"x")
    options = ["--format", form, *(["--skip-bad-images"] if skip else [])]
    answer = cli("predict", run, photos / "gone.png", photos, f"{photos}/*.gif", "--top", 2, *options)
    assert answer.code == (0 if skip else 2)
    good = [str(photos / name) for name in ("a.png", "deep/b.PNG", "deep/er/c.png")]
    if form == "table":
        assert [line.partition(": ")[0] for line in answer.out.splitlines()] == good
    elif form == "json":
        rows = json.loads(answer.out)
        assert [row["image"] for row in rows] == good and {len(row["classes"]) for row in rows} == {2}
        assert answer.out == json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
    else:
        head, *table = csv.reader(io.StringIO(answer.out))
        assert head == ["image", "class_1", "probability_1", "class_2", "probability_2"]
        assert [row[0] for row in table] == good
        assert all(
            1 > float(row[2]) > float(row[4]) > 0 and {row[1], row[3]} <= {"red", "green", "blue"} for row in table
        )
    for name in ("gone.png", "*.gif"):
        assert name in answer.err
    assert answer.err.count("-format jpg *.heic") == 1
    if not skip:
        assert all(name in answer.err for name in ("broken.png", "IMG_1.heic"))
        assert answer.err.splitlines()[-1].startswith("error: ")


def test_json_and_csv_say_the_same(cli: Cli, run: Path, photos: Path) -> None:
    rows = json.loads(cli("predict", run, photos, "--json").out)
    assert rows == json.loads(cli("predict", run, photos, "--format", "json").out)
    table = list(csv.DictReader(io.StringIO(cli("predict", run, photos, "--format", "csv").out)))
    for row, entry in zip(table, rows, strict=True):
        assert row["image"] == entry["image"]
        for rank, found in enumerate(entry["classes"], start=1):
            assert (row[f"class_{rank}"], float(row[f"probability_{rank}"])) == (found["class"], found["probability"])
    none = cli("predict", run, photos / "none.png", "--json")
    assert (none.code, none.out) == (2, "[]\n")


def test_the_first_answers_come_before_the_last_file_is_read(
    run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apd.predict.BATCH", 1)
    second = photos / "deep" / "b.PNG"
    answers = predict_files(run, [photos / "a.png", second, photos / "later.png"])
    assert [row["image"] for row in next(answers).rows] == [str(photos / "a.png")]
    shutil.copy(photos / "a.png", photos / "later.png")  # one batch is read ahead, not two
    assert [row["image"] for row in next(answers).rows] == [str(second)]
    assert [row["image"] for row in next(answers).rows] == [str(photos / "later.png")]


def test_a_file_whose_name_begins_with_a_tilde_is_read(
    cli: Cli, run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    monkeypatch.delenv("HOME", raising=False)
    shutil.copy(photos / "a.png", photos / "~a.png")
    answer = cli("predict", run, "~a.png")
    assert answer.code == 0 and "~a.png" in answer.out


def test_a_carriage_return_in_a_name_does_not_end_a_row(cli: Cli, run: Path, photos: Path) -> None:
    shutil.copy(photos / "a.png", photos / "a\rb.png")
    answer = cli("predict", run, photos / "a\rb.png", photos / "a.png", "--format", "csv")
    rows = list(csv.reader(io.StringIO(answer.out, newline="")))
    assert [row[0] for row in rows] == ["image", str(photos / "a\rb.png"), str(photos / "a.png")]


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_ctrl_c_keeps_the_answers_so_far_and_says_how_to_have_the_others(
    cli: Cli, run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    seen = []

    def stop_at_second(*arguments: object, **options: object) -> object:
        seen.append(arguments)
        if len(seen) > 1:
            raise KeyboardInterrupt
        return decode.decode_all(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("apd.predict.BATCH", 1)
    monkeypatch.setattr("apd.predict.decode_all", stop_at_second)
    answer = cli("predict", run, photos, "--format", form)
    assert answer.code == 130
    first = str(photos / "a.png")
    if form == "json":
        assert [row["image"] for row in json.loads(answer.out)] == [first]
    else:
        assert answer.out.splitlines()[-1].startswith(first)
    assert "1 of 3 images" in answer.err
    assert f"apd predict {run} '{photos}' --format {form}" in answer.err


def test_file_names_that_are_not_utf_8(cli: Cli, run: Path, photos: Path) -> None:
    shutil.move(photos / "a.png", os.fsencode(photos) + b"/a\xff.png")
    for form in ("table", "json", "csv"):
        answer = cli("predict", run, photos, "--format", form)
        assert answer.code == 0, answer.err
        assert "xff.png" in answer.out or "udcff.png" in answer.out


def test_the_next_images_are_decoded_while_the_model_computes(
    run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apd.predict.BATCH", 1)
    begun: list[threading.Event] = [threading.Event(), threading.Event()]
    decoded = iter(begun)

    def noticed(*arguments: Any, **options: Any) -> Any:
        next(decoded).set()
        return decode.decode_all(*arguments, **options)

    class Waiting(torch.nn.Module):
        """A classifier whose first answer comes after the second file has begun to be decoded."""

        def __init__(self, own: apd.PromptedCLIP) -> None:
            super().__init__()
            self.own, self.encoder, self.class_names = own, own.encoder, own.class_names

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert begun[1].wait(10), "nobody reads ahead"
            return self.own(x)

    monkeypatch.setattr("apd.predict.decode_all", noticed)
    classifier: Any = Waiting(apd.load_run(run))
    assert len(list(classify_files(classifier, [photos / "a.png", photos / "a.png"]))) == 2


def test_files_of_other_kinds_are_counted(cli: Cli, run: Path, photos: Path) -> None:
    for name in ("notes.txt", "more.TXT", "film.mov", "Makefile", ".hidden"):
        (photos / name).write_text("")
    unknown = Counter[str]()
    find_images([photos], unknown)
    assert unknown == {".txt": 2, ".mov": 1, "": 1}
    answer = cli("predict", run, photos)
    assert answer.code == 0 and "4 files" in answer.err and "2 .txt" in answer.err and "1 .mov" in answer.err
    assert "other kinds" not in cli("predict", run, photos / "a.png").err


def test_a_home_directory_in_quotes_is_found(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(photos.parent))
    for given in (f"~/{photos.name}", f"~/{photos.name}/*.png"):
        assert find_images([given]) == find_images([f"{photos}{given.removeprefix(f'~/{photos.name}')}"])
