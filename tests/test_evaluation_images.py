"""Adversarial images kept as files: exact to a 16-bit level, inside the threat model, indexed, and resumed."""

from __future__ import annotations

import csv
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import apd
from apd.attacks import AttackBatch, Found
from apd.attacks.autoattack import LibraryAttack
from apd.attacks.threat import Norm, ThreatModel, parse_eps
from apd.errors import InputError
from apd.evaluation import evaluate, images, read_image
from apd.evaluation.images import ImageFolder, storable
from apd.models.classifier import PromptedCLIP
from apd.util.png import decode_png16, encode_png16

from .command_line import Cli
from .refusals import check_error
from .test_evaluation import data_of
from .toys import toy_clip

LEVEL = 1 / 65535


def saved(folder: Path, **values: Any) -> apd.Result:
    """An evaluation of a toy that keeps its images."""
    data = data_of(5)
    classifier = PromptedCLIP(toy_clip(5), None, data.class_names, data.templates)
    options: dict[str, Any] = {"attacks": "pgd-5", "eps": "10/255", "checks": False, "control": False}
    return evaluate(classifier, data, store=folder / "results", save_images=folder / "images", **(options | values))


def index_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    (place,) = (folder / "images").iterdir()
    return place, json.loads((place / "index.json").read_text(encoding="utf-8"))


def plainly_decoded(content: bytes) -> np.ndarray[Any, Any]:
    """A PNG file read as the specification says, byte by byte."""
    length = struct.unpack(">I", content[8:12])[0]
    width, height, depth, colour = struct.unpack(">IIBB", content[16 : 16 + 10])
    assert (length, depth, colour) == (13, 16, 2)
    at = content.index(b"IDAT")
    size = struct.unpack(">I", content[at - 4 : at])[0]
    raw = zlib.decompress(content[at + 4 : at + 4 + size])
    above, rows = bytes(6 * width), []
    for y in range(height):
        row = raw[y * (6 * width + 1) : (y + 1) * (6 * width + 1)]
        assert row[0] == 2
        above = bytes((one + other) % 256 for one, other in zip(row[1:], above, strict=True))
        rows.append([[256 * above[6 * x + 2 * c] + above[6 * x + 2 * c + 1] for c in range(3)] for x in range(width)])
    return np.array(rows)


def test_png_files_hold_16_bits_and_are_read_by_others() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    content = encode_png16(pixels)
    assert (decode_png16(content) == pixels).all() and (plainly_decoded(content) == pixels).all()
    assert (decode_png16(encode_png16(pixels.transpose(1, 0, 2))) == pixels.transpose(1, 0, 2)).all()


def test_pillow_shows_the_upper_8_bits(tmp_path: Path) -> None:
    pixels = np.arange(27, dtype=np.uint16).reshape(3, 3, 3) * 2000
    (tmp_path / "a.png").write_bytes(encode_png16(pixels))
    assert (np.asarray(Image.open(tmp_path / "a.png").convert("RGB")) == pixels // 256).all()


@pytest.mark.parametrize("cut", [0, 20, -20])
def test_damaged_files_are_refused(tmp_path: Path, cut: int) -> None:
    content = encode_png16(np.zeros((4, 4, 3), np.uint16))
    (tmp_path / "a.png").write_bytes(content[:cut])
    with pytest.raises(InputError, match=r"a\.png"):
        read_image(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "8.png")
    with pytest.raises(InputError, match=r"8\.png"):
        read_image(tmp_path / "8.png")


@pytest.mark.parametrize(("norm", "eps"), [("linf", "4/255"), ("linf", "0.3/255"), ("l2", "0.5")])
def test_rounding_stays_inside_the_ball(norm: Norm, eps: str) -> None:
    generator = torch.Generator().manual_seed(0)
    threat = ThreatModel(parse_eps(eps, norm), norm)
    clean = torch.randint(0, 256, (6, 3, 8, 8), generator=generator).float() / 255
    found = threat.project(clean + torch.randn(clean.shape, generator=generator), clean)
    stored, _, _ = storable(found, clean, threat, lambda x: torch.zeros(len(x), dtype=torch.int64))
    on_levels = (stored / LEVEL - (stored / LEVEL).round()).abs().max()
    distance = (stored - clean.double()).flatten(1)
    longest = distance.abs().max() if norm == "linf" else distance.norm(dim=1).max()
    assert on_levels < 1e-6 and stored.min() >= 0 and stored.max() <= 1
    assert longest <= threat.eps + 1e-6 and (stored - found.double()).abs().max() < 1.05 * LEVEL


def test_whole_levels_of_8_bits_are_kept_exactly() -> None:
    clean = torch.arange(192).view(1, 3, 8, 8).float() / 255
    found = clean + 4 / 255
    stored, _, _ = storable(found, clean, ThreatModel(4 / 255), lambda x: torch.zeros(1, dtype=torch.int64))
    assert (stored - found.double()).abs().max() < 1e-7


def test_rounding_keeps_the_class_where_a_level_can() -> None:
    """A border between two classes that lies just short of the image: the nearest level is on the wrong side of it."""
    clean, border = torch.full((1, 3, 2, 2), 100 / 255), 30000.3 * LEVEL

    def predict(x: Tensor) -> Tensor:
        return (x[:, 0, 0, 0] > border).long()

    found = torch.full_like(clean, border + 0.1 * LEVEL)
    stored, classes, wanted = storable(found, clean, ThreatModel(0.5), predict)
    assert wanted.tolist() == classes.tolist() == [1]
    assert round(float(stored[0, 0, 0, 0]) / LEVEL) == 30001


def test_images_and_index_say_what_the_result_says(tmp_path: Path) -> None:
    result = saved(tmp_path)
    place, index = index_of(tmp_path)
    labels, guesses = list(result.labels), result.predictions
    attacked = [i for i, label in enumerate(labels) if guesses["clean"][i] == label]
    assert index["complete"] and [row["id"] for row in index["images"]] == [result.ids[i] for i in attacked]
    names = index["class_names"]
    assert index["changed_by_storing"] == 0
    assert [row["predicted_adversarial"] for row in index["images"]] == [names[guesses["pgd-5"][i]] for i in attacked]
    data = data_of(5)
    classifier = PromptedCLIP(toy_clip(5), None, data.class_names, data.templates)
    for row in index["images"]:
        found, clean = (read_image(place / row[name]) for name in ("file", "clean_file"))
        distance = float((found - clean).abs().max())
        assert distance <= 10 / 255 + 1e-6 and distance == pytest.approx(row["distance"], abs=1e-6)
        assert row["max_error"] <= LEVEL and row["eps"] == 10 / 255 and row["attack"] == "pgd-5"
        assert names[int(classifier(found[None]).argmax())] == row["predicted_adversarial"]
        assert names[int(classifier(clean[None]).argmax())] == row["predicted_clean"] == row["label"]
    with (place / "index.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["file"] for row in table] == [row["file"] for row in index["images"]]


def test_images_of_known_outcomes_are_made_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(5)
    classifier = PromptedCLIP(toy_clip(5), None, data.class_names, data.templates)
    options: dict[str, Any] = {"attacks": "pgd-5", "eps": "10/255", "checks": False, "control": False}
    plain = evaluate(classifier, data, store=tmp_path / "results", **options)
    with_images = saved(tmp_path)
    assert with_images.predictions == plain.predictions
    place, index = index_of(tmp_path)
    files = {file: file.stat().st_mtime_ns for file in place.glob("*/*.png")}
    assert len(files) == 2 * len(index["images"])
    monkeypatch.setattr(images, "encode_png16", None)
    assert saved(tmp_path).predictions == plain.predictions
    assert {file: file.stat().st_mtime_ns for file in place.glob("*/*.png")} == files


def test_an_interrupted_evaluation_leaves_a_whole_index_and_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = saved(tmp_path / "whole", batch_size=8)
    add, calls = ImageFolder.add, []

    def stopping(self: ImageFolder, *arguments: Any) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        add(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "add", stopping)
        with pytest.raises(KeyboardInterrupt):
            saved(tmp_path / "stopped", batch_size=8)
    place, index = index_of(tmp_path / "stopped")
    assert not index["complete"] and len(index["images"]) == 8
    assert all((place / row["file"]).is_file() for row in index["images"])
    assert saved(tmp_path / "stopped", batch_size=8).predictions == expected.predictions
    whole, again = (index_of(tmp_path / name)[1] for name in ("whole", "stopped"))
    assert again["complete"] and again["images"] == whole["images"]


def test_a_resumed_evaluation_attacks_in_the_batches_of_one_that_ran_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What libraries draw depends on the batch: images that fell before the stop were attacked beside others."""
    batches: list[tuple[str, tuple[str, ...]]] = []
    stop = False
    attack = LibraryAttack.__call__

    def looked(self: LibraryAttack, model: Any, batch: AttackBatch, *arguments: Any) -> Found:
        if stop and self.name == "apgd-dlr" and len(batches) > 2:
            raise KeyboardInterrupt
        batches.append((self.name, tuple(batch.ids)))
        return attack(self, model, batch, *arguments)

    monkeypatch.setattr(LibraryAttack, "__call__", looked)
    how = {"attacks": "apgd-ce+dlr", "batch_size": 8}
    saved(tmp_path / "whole", **how)
    whole, stop = [*batches], True
    batches.clear()
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path / "stopped", **how)
    stop, done = False, [*batches]
    batches.clear()
    saved(tmp_path / "stopped", **how)
    assert 2 < len(done) < len(whole) and whole[: len(done)] == done
    assert whole[-len(batches) :] == batches, "the unfinished batch from its beginning, then the others"


@pytest.mark.parametrize(
    "id_", ["../../etc/x.png", "<img src=x onerror=alert(1)>.jpg", "a\x1b[31m\n.png", "猫.png", ""]
)
def test_names_are_safe_anywhere(tmp_path: Path, id_: str) -> None:
    folder = ImageFolder(tmp_path / "kept", {"attack": "pgd-1"}, ("=cat\n", "dog"))
    x = torch.full((1, 3, 2, 2), 0.5)
    arguments = (x, x + 1 / 255, ["pgd-1"], ThreatModel(1 / 255), lambda x: torch.ones(len(x), dtype=torch.int64))
    folder.add([(id_, "0", 0)], *arguments)
    folder.add([(f"{id_}!", "0", 0)], *arguments)
    folder.add([(id_, "another image of this id", 0)], *arguments)
    files = sorted((tmp_path / "kept" / "adversarial").iterdir())
    assert len(files) == 3 and all(set(file.name) <= set("-." + _PLAIN) for file in files)
    table = (tmp_path / "kept" / "index.csv").read_text(encoding="utf-8")
    assert "\x1b" not in table and "'=cat" in table and len(table.splitlines()) == 4
    json.loads((tmp_path / "kept" / "index.json").read_text())


_PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def test_a_folder_of_other_images_is_refused(tmp_path: Path) -> None:
    ImageFolder(tmp_path, {"attack": "pgd-1"}, ("a", "b")).write()
    with pytest.raises(InputError, match="other images"):
        ImageFolder(tmp_path, {"attack": "pgd-2"}, ("a", "b"))
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        ImageFolder(tmp_path, {"attack": "pgd-1"}, ("a", "b"))


def test_the_command_keeps_images_in_the_run(cli: Cli, run: Path, clip_folder: Path, colours: Path) -> None:
    answer = cli("evaluate", run, "--attack", "pgd-2", "--limit", 6, "--save-images")
    assert answer.code == 0, answer.err
    _, index = index_of(run)
    assert index["about"]["attack"] == "pgd-2" and str(run / "images") in answer.err
    check_error(cli("evaluate", "--model", clip_folder, "--data", colours, "--save-images"), ["--save-images"])
