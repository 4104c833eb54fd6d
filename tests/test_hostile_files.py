"""The corpus of hostile files: each is refused by one clear line, before it takes memory, time or files elsewhere."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import apd
from apd.bench import load_suite
from apd.data.decode import decode_all, open_image
from apd.data.sources.class_list import read_class_names
from apd.errors import ApdError, InputError
from apd.evaluation.certified.stored import load_certified
from apd.evaluation.store import Record
from apd.evaluation.stored import load_stored
from apd.models import DualEncoder
from apd.models.preprocessing import Preprocessing
from apd.models.prompts import Prompts, PromptSpec
from apd.runs.folder import Run
from apd.util.files import read_json
from apd.util.png import decode_png16
from apd.util.tensors import read_tensors
from apd.util.torch_files import read_torch_file
from apd.util.yaml_files import MOST_VALUES, parse_yaml, read_yaml

from .models import save_clip
from .refusals import refused
from .suites import Write

SMALL = Preprocessing.plain(8)


class Runs:
    """What a pickle makes when it is opened as one."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (open, ("it-ran", "w"))


def decoded(*sources: Any) -> object:
    return decode_all([f"image {i}" for i in range(len(sources))], sources, SMALL, skip_bad=False, progress=False)


def header(text: bytes, length: int | None = None, body: bytes = b"") -> bytes:
    """A safetensors file."""
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(shape: list[int], end: int, dtype: str = "F32") -> bytes:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}).encode()


SAFETENSORS = {
    "empty": b"",
    "a header of 16 exabytes": header(b"{}", 2**64 - 1),
    "a header of gigabytes": header(b"{}", 2**33),
    "a shape beyond the file": header(tensor([2**40], 2**42)),
    "a shape that overflows": header(tensor([2**32, 2**32, 2**32], 4), body=b"\0" * 4),
    "a negative shape": header(tensor([-1], 4), body=b"\0" * 4),
    "no header": header(b"[" * 100_000),
    "unknown type": header(tensor([1], 4, "PICKLE"), body=b"\0" * 4),
    "a pickle": pickle.dumps({"a": 1}),
}


@pytest.mark.parametrize("content", SAFETENSORS.values(), ids=SAFETENSORS.keys())
def test_safetensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "prompts.safetensors").write_bytes(content)
    with refused("prompts.safetensors"):
        read_tensors(tmp_path / "prompts.safetensors", "restore it")


def test_a_sparse_file_of_tensors_costs_no_memory(tmp_path: Path) -> None:
    size = 2**40
    text = tensor([size // 4], size)
    with open(tmp_path / "prompts.safetensors", "wb") as file:
        file.write(header(text))
        file.truncate(8 + len(text) + size)
    for most in (2**31, 2**50):
        with refused("prompts.safetensors"):
            read_tensors(tmp_path / "prompts.safetensors", "restore it", most=most)


def test_prompts_are_no_larger_than_what_is_saved(clip: DualEncoder) -> None:
    for spec in (
        PromptSpec(text_tokens=10**9),
        PromptSpec(visual_tokens=10**9),
        PromptSpec(text_tokens=10**6, experts=10**6),
    ):
        with refused(str(max(spec.text_tokens * spec.experts, spec.visual_tokens))):
            Prompts.from_tensors(spec, clip.info, {"text_tokens.0": torch.zeros(4, 8)})


def test_prompts_of_a_type_that_torch_does_not_convert(clip: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = PromptSpec(text_tokens=2, visual_tokens=2)
    saved = Prompts(spec, clip.info).state_dict()
    monkeypatch.setattr(Prompts, "load_state_dict", lambda *_: torch.zeros(2).view(3))
    with refused("torch.float32"):
        Prompts.from_tensors(spec, clip.info, saved)


@pytest.mark.parametrize("compressed", [False, True])
def test_pickles_are_not_run_and_archives_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if compressed:
        with zipfile.ZipFile("tower.pt", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\0" * 2**24)
    else:
        torch.save({"weight": Runs()}, "tower.pt")
    with refused("tower.pt"):
        read_torch_file(Path("tower.pt"), "tower.pt")
    Path("plain.pt").write_bytes(pickle.dumps(Runs()))
    with refused("plain.pt"):
        read_torch_file(Path("plain.pt"), "plain.pt")
    assert not Path("it-ran").exists()


YAML = {
    "aliases": "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8)),
    "an alias in itself": "a: &a [*a]",
    "nested": "[" * 5000,
    "python": "!!python/object/apply:os.system ['touch it-ran']",
    "a long number": "a: " + "9" * 5000,
    "a date that is none": "a: 2020-99-99",
    "another kind than its tag": "a: !!float [1]",
    "a mapping as a key": "? {a: 1}\n: 2",
    "many values": "[" + "a," * 15_000 + "]",
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML.keys())
def test_yaml(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_VALUES <= 100_000, "which take seconds"
    monkeypatch.setattr("apd.util.yaml_files.MOST_VALUES", 5000)
    monkeypatch.chdir(tmp_path)
    Path("theirs.yaml").write_text(text)
    with refused("theirs.yaml"):
        read_yaml(Path("theirs.yaml"))
    assert not Path("it-ran").exists()


JSON = {
    "nested": b"[" * 200_000,
    "a long number": b"9" * 5000,
    "other than UTF-8": b'{"a": "\xff"}',
    "too large": b'"' + b"a" * 2000 + b'"',
}


@pytest.mark.parametrize("content", JSON.values(), ids=JSON.keys())
def test_json(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "theirs.json").write_bytes(content)
    with refused("theirs.json", "restore it"):
        read_json(tmp_path / "theirs.json", "restore it", largest=1000 if b"aaa" in content else 10**6)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_in_a_run_or_among_images_are_not_waited_for(run: Path, tmp_path: Path) -> None:
    for name in ("results/summary-x.json", "results/certified-x.json", "prompts.safetensors"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    with refused("summary-x.json"):
        load_stored(Run.open(run))
    with refused("certified-x.json"):
        load_certified(Run.open(run))
    with refused("prompts.safetensors"):
        Run.open(run).load_prompts()
    os.mkfifo(tmp_path / "a.png")
    with refused("a.png"):
        decoded(tmp_path / "a.png")


def bomb(width: int, height: int, bits: int = 8, colours: int = 6, data: int = 1000) -> bytes:
    """A PNG file of a few bytes that says it has these many pixels, and unfolds to so much data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(data))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (12_000, 12_000)])
def test_images_that_unfold_are_not_unfolded(width: int, height: int) -> None:
    with refused("image 0"):
        decoded(lambda: open_image(io.BytesIO(bomb(width, height))))


@pytest.mark.parametrize(
    ("mode", "size"), [("crop", (4_000_000, 1)), ("crop", (1, 4_000_000)), ("squash", (1, 4_000_000))]
)
def test_long_and_thin_images_do_not_grow(mode: Any, size: tuple[int, int]) -> None:
    """A file of a few hundred bytes took gigabytes: its short side grows to the encoder's, and its long side with it."""
    with refused("image 0", "long and thin"):
        decode_all(["image 0"], [lambda: Image.new("RGB", size)], replace(SMALL, mode=mode), False, False)


@pytest.mark.parametrize("mode", ["crop", "squash"])
def test_panoramas_are_read(mode: Any) -> None:
    sources = [partial(Image.new, "RGB", size) for size in ((20_000, 100), (100, 20_000))]
    how = replace(SMALL, size=224, resize=224, mode=mode)
    assert decode_all(["wide", "high"], sources, how, False, False)[0].shape == (2, 3, 224, 224)


def test_formats_that_start_programs_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with refused("a.jpg"):
        decoded(tmp_path / "a.jpg")


@pytest.mark.parametrize("side", [2**31, 8])
def test_kept_images_do_not_unfold_either(side: int) -> None:
    with pytest.raises(InputError):
        decode_png16(bomb(side, side, bits=16, colours=2, data=10**7))


@pytest.mark.parametrize(
    ("tower", "name"),
    [("text_config", "vocab_size"), ("text_config", "num_hidden_layers"), ("vision_config", "intermediate_size")],
)
def test_models_are_no_larger_than_their_files(tmp_path: Path, tower: str, name: str) -> None:
    folder = save_clip(tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    config[tower][name] = 10**9
    (folder / "config.json").write_text(json.dumps(config))
    with refused("config.json", f"{(folder / 'model.safetensors').stat().st_size:,}"):
        apd.load_clip(folder)


@pytest.mark.parametrize("line", ["a " * 100_000, "b" + " " * 100_000 + "a", "a,;:=" * 50_000, "\t1" * 100_000])
def test_long_lines_of_class_lists_take_no_time(tmp_path: Path, line: str) -> None:
    (tmp_path / "classes.txt").write_text(f"cat\n{line}\n")
    with refused("classes.txt"):
        read_class_names(tmp_path / "classes.txt", ["cat", "dog"])


def test_suites_are_counted_before_they_are_combined(write: Write) -> None:
    suite = yaml.safe_load(write().read_text())
    file = write(blocks=[{**suite["blocks"][0], "seeds": list(range(3000)), "shots": list(range(1, 3001))}])
    runs = 3 * 3000**2
    with refused(f"{runs:,}", file.name):
        load_suite(file)


def test_a_suite_of_many_methods_is_counted_before_their_settings_are_read(write: Write) -> None:
    suite = yaml.safe_load(write().read_text())
    with refused("3,006"):
        load_suite(write(methods=suite["methods"] | {f"m{i}": "vlp" for i in range(3000)}))


MANIFEST: dict[str, dict[str, Any]] = {
    "names that are not texts": {"class_names": [1, None]},
    "names without end": {"class_names": ["a" * 10**6, "b"]},
    "a list as the model": {"model": ["a"]},
    "no hash": {"prompts_sha256": None},
    "a temperature of 0": {"calibration": {"temperature": 0, "images": 1, "ece_before": 0, "ece_after": 0}},
    "a temperature of nearly 0": {"calibration": {"temperature": 1e-300, "images": 1, "ece_before": 0, "ece_after": 0}},
    "an infinite temperature": {
        "calibration": {"temperature": float("inf"), "images": 1, "ece_before": 0, "ece_after": 0}
    },
    "a version that is none": {"format": {"a": 1}},
    "prompts that are not": {"prompts": {"text_tokens": "many"}},
    "prompts without end": {"prompts": {"text_tokens": 10**12}},
}


@pytest.mark.parametrize("change", MANIFEST.values(), ids=MANIFEST.keys())
def test_manifests(run: Path, change: dict[str, Any]) -> None:
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(InputError):
        apd.load_run(run)


def test_records_of_outcomes(tmp_path: Path) -> None:
    first = {"circumstances": {}, "seconds": 0.0, "flags": {}, "batch_sizes": []}
    for row in (
        [1],
        {"id": {}},
        {"id": "a", "pixels": "b", "label": "c", "predicted": 1},
        {"withstood": ["x"], "samples": [1]},
        "id",
    ):
        (tmp_path / "a.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(row)}\n")
        with refused("a.jsonl"):
            Record.load(tmp_path / "a.jsonl", {})


def test_the_fuzzer_finds_its_files_readable_and_its_changes_refused(tmp_path: Path) -> None:
    benchmarks = pytest.importorskip("benchmarks.fuzz_parsers")
    parsers = benchmarks.make_parsers(tmp_path, [name for name in benchmarks.PARSERS if name != "suites"])
    for parser in parsers:
        read = 0
        for number in range(300 if parser.share >= 8 else 40):  # more of what is quick
            try:
                parser.run(parser.make(Random(f"test/{parser.name}/{number}")))
                read += 1
            except ApdError as refusal:
                assert str(refusal).isprintable()
        assert read, parser.name


@pytest.mark.parametrize(("name", "number"), [("split files", 2461), ("outcomes and plans", 21602)])
def test_cases_that_once_ended_in_other_errors(tmp_path: Path, name: str, number: int) -> None:
    benchmarks = pytest.importorskip("benchmarks.fuzz_parsers")
    (parser,) = benchmarks.make_parsers(tmp_path, [name])
    with pytest.raises(ApdError):
        parser.run(parser.make(Random(f"0/{name}/{number}")))


def test_yaml_is_still_read() -> None:
    assert parse_yaml("a: [1, &x 2, *x]", "here") == {"a": [1, 2, 2]}
    assert sys.getrecursionlimit() >= 1000
