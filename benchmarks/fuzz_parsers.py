"""What `benchmarks.fuzz` feeds: the parsers, and valid files of each to start from."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from apd.bench.job import read_outcome
from apd.bench.report.rows import read_bench
from apd.bench.suite import load_suite
from apd.data.decode import decode_all, open_image
from apd.data.sources.class_list import read_class_names
from apd.data.sources.class_names import readable_names
from apd.data.sources.coop import load_coop
from apd.data.sources.csv_table import load_csv
from apd.data.sources.unlabelled import read_list
from apd.data.splits import check_names
from apd.evaluation.images import read_index
from apd.evaluation.store import Record
from apd.evaluation.stored import load_stored
from apd.evaluation.verify_card import check_card
from apd.models import load_clip
from apd.models.preprocessing import Preprocessing
from apd.models.prompts import Prompts, PromptSpec
from apd.runs.card import render_card
from apd.runs.config import load_config
from apd.runs.folder import Run
from apd.runs.shown import run_html
from apd.util.png import decode_png16, encode_png16
from apd.util.tensors import read_tensors
from apd.util.text import code_span, markdown, one_line, printable
from apd.util.torch_files import read_torch_file
from apd.util.trust import note_code
from benchmarks.fuzz_changes import Change, bytes_of, structure_of, text_of


@dataclass(frozen=True)
class Parser:
    """A parser and its cases.

    Args:
        name: in the results.
        share: how many of the cases it gets, relative to others.
        make: a case from its own random numbers.
        run: reads a case; raises an error of ours for what it refuses.
    """

    name: str
    share: float
    make: Change
    run: Callable[[bytes], object]


PARSERS: dict[str, tuple[float, Callable[[Path], tuple[Change, Callable[[bytes], object]]]]] = {}
"""By name: its share, and what makes its cases and its reader in a folder."""


def make_parsers(folder: Path, names: Sequence[str]) -> list[Parser]:
    """Make the parsers, each with a folder of its own."""
    found = []
    for name in names:
        share, build = PARSERS[name]
        place = folder / name.replace(" ", "-")
        place.mkdir()
        found.append(Parser(name, share, *build(place)))
    return found


def _parser(name: str, share: float) -> Callable[[Any], Any]:
    def add(build: Callable[[Path], tuple[Change, Callable[[bytes], object]]]) -> object:
        PARSERS[name] = (share, build)
        return build

    return add


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _yaml(value: Any) -> bytes:
    return yaml.dump(value, allow_unicode=True).encode(errors="surrogatepass")


def _into(file: Path, read: Callable[[], object]) -> Callable[[bytes], object]:
    """Write a case to a file, and read it."""

    def run(case: bytes) -> object:
        file.write_bytes(case)
        return read()

    return run


def _either(random: Random, *ways: Change) -> bytes:
    return random.choice(ways)(random)


_CONFIG = {
    "model": "glyphs",
    "data": {"source": "digits", "shots": 4, "templates": ["a photo of a {}."], "classes": "all"},
    "method": {"name": "apd", "prompts": {"text_tokens": 2, "visual_tokens": 2}},
    "train": {"eps": "4/255", "epochs": 2, "optimizer": {"lr": 0.01}, "attack": {"steps": 2}, "seed": 0},
}
_SUITE = {
    "name": "small",
    "model": "glyphs",
    "limit": 10,
    "attacks": ["pgd-2"],
    "train": {"epochs": 1},
    "data": {"digits": {"source": "digits", "eps": "8/255", "shots": 2}},
    "methods": {"zero-shot": None, "advvlp": "advvlp"},
    "blocks": [{"protocol": "few-shot", "data": ["digits"], "methods": ["zero-shot", "advvlp"], "seeds": [0, 1]}],
}


@_parser("configurations", 3)
def _configurations(folder: Path) -> tuple[Change, Callable[[bytes], object]]:
    file, seeds = folder / "config.yaml", [_CONFIG, {"data": "digits", "method": "clean"}]
    structure, plain = structure_of(seeds, _yaml), bytes_of([_yaml(seed) for seed in seeds])
    return lambda random: _either(random, structure, plain), _into(file, lambda: load_config(file))


@_parser("suites", 2)
def _suites(folder: Path) -> tuple[Change, Callable[[bytes], object]]:
    file = folder / "suite.yaml"
    structure, plain = structure_of([_SUITE], _yaml), bytes_of([_yaml(_SUITE)])
    return lambda random: _either(random, structure, plain), _into(file, lambda: load_suite(file))


@_parser("split files", 8)
def _split_files(folder: Path) -> tuple[Change, Callable[[bytes], object]]:
    (folder / "images").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        (folder / "images" / name).write_bytes(b"")
    train, test = ([[f"{one}.jpg", 0, "cat"], [f"{two}.jpg", 1, "snow_leopard"]] for one, two in ("ab", "cd"))
    seed, file = {"train": train, "val": [], "test": test}, folder / "split_zhou_X.json"
    return structure_of([seed], _json), _into(file, lambda: load_coop(file, str(file)))


@_parser("tables", 4)
def _tables(folder: Path) -> tuple[Change, Callable[[bytes], object]]:
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        (folder / name).write_bytes(b"")
    plain = "path,label\na.jpg,cat\nb.jpg,snow_leopard\nc.jpg,cat\nd.jpg,snow_leopard\n"
    split = 'path;label;split\na.jpg;cat;train\n"b.jpg";dog;train\nc.jpg;cat;test\nd.jpg;dog;test\n'
    file = folder / "t.csv"
    return bytes_of([plain.encode(), split.encode()]), _into(file, lambda: load_csv(file, str(file)))


@_parser("safetensors", 16)
def _safetensors(folder: Path) -> tuple[Change, Callable[[bytes], object]]:
    file, clip = folder / "prompts.safetensors", load_clip("glyphs")
    spec = PromptSpec(text_tokens=2, visual_tokens=2, text_depth=1, visual_depth=1)
    whole = save(Prompts(spec, clip.info).state_dict(), {"format": "pt", "apd": "{}"})
    length = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    heads = structure_of([header], _json)

    def make(random: Random) -> bytes:
        if random.random() < 0.5:
            return bytes_of([whole])(random)
        text = heads(random)
        size = len(text) if random.random() < 0.9 else random.choice((0, 1, 2**31, 2**40, 2**64 - 1))
        return struct.pack("<Q", size) + text + body

    def read() -> object:
        return Prompts.from_tensors(spec, clip.info, read_tensors(file, "restore it")[0])

    return make, _into(file, read)


@_parser("files of weights", 2)
def _weights(folder: Path) -> tuple[Change, Callable[[bytes], object]]:
    file, stored, older = folder / "tower.pt", io.BytesIO(), io.BytesIO()
    state = {"state_dict": {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, "epoch": 3}
    torch.save(state, stored)
    torch.save(state, older, _use_new_zipfile_serialization=False)
    return bytes_of([stored.getvalue(), older.getvalue()]), _into(file, lambda: read_torch_file(file, "tower.pt"))


@_parser("images", 8)
def _images(folder: Path) -> tuple[Change, Callable[[bytes], object]]:
    seeds, how = list[bytes](), Preprocessing.plain(8)
    gradient = Image.linear_gradient("L").resize((9, 7))
    for mode, forms in (
        ("RGB", "PNG JPEG BMP TIFF WEBP PPM GIF"),
        ("RGBA", "PNG WEBP"),
        ("P", "GIF"),
        ("I;16", "PNG TIFF"),
    ):
        for form in forms.split():
            with io.BytesIO() as made:
                gradient.convert("I").convert(mode).save(made, form) if mode == "I;16" else gradient.convert(mode).save(
                    made, form
                )
                seeds.append(made.getvalue())
    kept = encode_png16(np.arange(8 * 8 * 3, dtype=np.uint16).reshape(8, 8, 3))

    def run(case: bytes) -> object:
        if case[:1] == b"K":
            return decode_png16(case[1:])
        return decode_all(["image"], [lambda: open_image(io.BytesIO(case))], how, False, False)

    ours = bytes_of([kept])
    plain = bytes_of(seeds)
    return lambda random: b"K" + ours(random) if random.random() < 0.1 else plain(random), run


_RESULT = {
    **{"clean": 80.0, "clean_interval": [70.0, 90.0], "worst": {"accuracy": 50.0, "interval": [30.0, 60.0]}},
    "attacks": {"pgd-5": {"accuracy": 50.0, "interval": [30.0, 60.0], "seconds": 1.0, "runs": ["pgd-5"], "flags": {}}},
    **{"n": 2, "n_available": 90, "n_classes": 2, "data": "digits", "split": "test", "classes": "all", "norm": "linf"},
    **{"eps": 4 / 255, "eps_text": "4/255", "seed": 0, "skipped_images": [], "corruption": None, "image_size": 32},
    "per_class": {"zero": {"n": 1, "clean": 100.0, "worst": 50.0}},
    "checks": [{"name": "huge eps", "passed": True, "value": 0.0, "message": "fine"}],
    "undefended": None,
}
_OUTCOMES = {
    **{"ids": ["a", "b"], "pixels": ["1", "2"], "labels": [0, 1], "class_names": ["zero", "one"]},
    **{"predictions": {"clean": [0, 1], "pgd-5": [0, 0]}, "undefended": None},
}


def _manifest() -> dict[str, Any]:
    model = {"source": "glyphs", "revision": None, "family": "clip", "image_size": 32, "preprocessing": {"size": 32}}
    return {
        **{"format": 1, "status": "done", "model": {**model, "weights_sha256": "ab", "tokenizer_sha256": "cd"}},
        **{"teachers": {}, "data": {"name": "digits", "train_images": 4, "validation_images": 4}, "left_out": {}},
        **{"class_names": ["zero", "one"], "templates": ["a photo of a {}."], "prompts": {"text_tokens": 2}},
        **{"prompts_sha256": "ef", "seeds": {"train": 0}, "versions": {"apd": "1"}, "summary": {"val_clean": 80.0}},
        **{"facts": {}, "seconds": 1.0},
        "calibration": {"temperature": 1.0, "images": 4, "ece_before": 0.1, "ece_after": 0.1},
    }


@_parser("run folders and cards", 10)
def _cards(folder: Path) -> tuple[Change, Callable[[bytes], object]]:
    (folder / "results").mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(_CONFIG))
    config, end = load_config(folder / "config.yaml"), b"\n--8<--\n"
    files = [folder / "run.json", folder / "results" / "summary-a.json", folder / "results" / "outcomes-a.json"]
    whole = [_manifest(), _RESULT, _OUTCOMES]
    changes, fine = [structure_of([each], _json) for each in whole], [_json(each) for each in whole]

    def make(random: Random) -> bytes:
        chosen = random.randrange(3)
        return end.join(changes[i](random) if i == chosen else fine[i] for i in range(3))

    def run(case: bytes) -> object:
        for file, content in zip(files, [*case.split(end), b"", b""][:3], strict=True):
            file.write_bytes(content)
        opened = Run.open(folder, finished=False)
        stored = load_stored(opened)
        opened._starting = config  # instead of reading it a hundred thousand times
        if opened.finished:
            PromptSpec.recorded(opened.manifest["prompts"], "run.json")
            render_card(folder, opened.manifest, config, [each.summary for each in stored])
            run_html(opened, files[1:2])
        return opened.calibration, repr(opened)

    return make, run


_ADDED = """
<!-- a note -->
# About `a` <b>it</b>
Robust accuracy 0.50, 50.0 % of 2 of 90 images at 4/255, by my_models:Toy.

| what | value |
|---|---|
| **mine** | a \\| b |

~~~text
| pgd-5 | 50.0 (30.0 to 60.0) |
"""


@_parser("model cards", 4)
def _model_cards(folder: Path) -> tuple[Change, Callable[[bytes], object]]:
    (folder / "results").mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(_CONFIG))
    (folder / "run.json").write_bytes(_json(_manifest()))
    (folder / "results" / "summary-a.json").write_bytes(_json(_RESULT))
    opened, card = Run.open(folder), folder / "README.md"
    written = render_card(folder, opened.manifest, opened.config, [_RESULT])
    characters, plain = text_of([written, written + _ADDED, _ADDED]), bytes_of([(written + _ADDED).encode()])

    def make(random: Random) -> bytes:
        text = _either(random, characters, characters, plain)
        at = random.randrange(len(text) + 1)
        return (
            text if random.random() < 0.7 else text[:at] + text[at : at + 40] * random.choice((2, 20, 500)) + text[at:]
        )

    def run(case: bytes) -> object:
        card.write_bytes(case)
        note_code([case.decode(errors="replace")], "README.md")
        return check_card(opened)

    return make, run


@_parser("outcomes and plans", 12)
def _bench(folder: Path) -> tuple[Change, Callable[[bytes], object]]:
    view = {"name": "test", "split": "test", "data": "d", "eps": "1/255", "attacks": ["pgd-2"], "limit": None}
    row = {"protocol": "few-shot", "data": "d", "method": "m", "shots": 1, "seed": 0, "job": "j0", "views": {"v": view}}
    plan = {"suite": "s", "against": None, "image_size": 32, "entries": [{**row, "final": {}}]}
    right = {"clean": "10", "pgd-2": "10", "worst": "10"}
    outcome = {"job": "j0", "label": "m on d", "seconds": 1.0, "validation": {}, "versions": {"apd": "1"}}
    outcome |= {"views": {"v": {"images": "ab", "right": right, "seconds": 1.0, "apd": "1"}}}
    spent = {"seconds": 1.0, "flags": {}, "batch_sizes": [8]}
    lines = [{"circumstances": {"attack": "pgd"}, **spent}, spent]
    lines += [
        {"id": "a", "pixels": "1", "label": 0, "predicted": 1, "by": None},
        {"withstood": ["x"], "samples": [["b", "2", 1]]},
    ]
    kept = dict.fromkeys(("id", "label", "predicted_clean", "predicted_adversarial", "attack", "by", "pixels"), "a")
    kept |= {
        "file": "adversarial/a.png",
        "clean_file": "clean/a.png",
        "eps": 0.1,
        "distance": 0.1,
        "max_error": 0.0,
        "changed": False,
    }
    index = {"format": 1, "complete": True, "about": {"attack": "pgd"}, "class_names": ["a"], "images": [kept]}
    (folder / "outcomes").mkdir()
    record = structure_of(
        [lines],
        lambda value: b"".join(_json(each) + b"\n" for each in value) if isinstance(value, list) else _json(value),
    )
    places: dict[bytes, tuple[Path, Change, Callable[[], object]]] = {
        b"P": (folder / "plan.json", structure_of([plan], _json), lambda: read_bench(folder)),
        b"O": (folder / "outcomes" / "j0.json", structure_of([outcome], _json), lambda: read_outcome(folder, "j0")),
        b"R": (folder / "pgd.jsonl", record, lambda: Record.load(folder / "pgd.jsonl", {})),
        b"I": (folder / "index.json", structure_of([index], _json), lambda: read_index(folder / "index.json")),
    }

    def make(random: Random) -> bytes:
        kind = random.choice(list(places))
        return kind + places[kind][1](random)

    def run(case: bytes) -> object:
        (folder / "outcomes" / "j0.json").write_bytes(_json(outcome))
        if case[:1] not in places:  # libFuzzer makes such cases: they are of no file
            return None
        file, _, read = places[case[:1]]
        file.write_bytes(case[1:])
        return read()

    return make, run


@_parser("class names", 24)
def _class_names(folder: Path) -> tuple[Change, Callable[[bytes], object]]:
    seeds = ["cat", "snow_leopard", "n01440764-tench", "001.Black_footed_Albatross", "a <b>c</b> | `d`", "piñata 猫"]

    def run(case: bytes) -> object:
        name = case.decode(errors="surrogateescape")
        check_names((name, "another"), "the folder")
        shown, cell = printable(name), markdown(name)
        odd = [
            text
            for text in (shown, cell, one_line(name), code_span(name))
            if "\n" in text or "\x1b" in text or "\r" in text
        ]
        if odd or "<" in cell or "|" in cell.replace("\\|", ""):
            raise AssertionError(f"shown raw: {odd or cell!r}")
        return readable_names([name, "another"])

    return text_of(seeds), run


@_parser("class lists", 15)
def _class_lists(folder: Path) -> tuple[Change, Callable[[bytes], object]]:
    folders = ["n01440764", "n01443537", "n02119789"]
    named = ["cat", "snow_leopard", "dog"]
    seeds = [
        "n01440764,tench\nn01443537 goldfish\nn02119789: kit fox\n",
        "0 cat\n1 dog\n2 snow leopard\n",
        "cat\ndog\nsnow leopard\n",
    ]
    file = folder / "classes.txt"

    def read() -> object:
        names = read_list(str(file))
        return read_class_names(file, folders if names[:1] and names[0].startswith("n0") else named)

    return text_of(seeds), _into(file, read)
