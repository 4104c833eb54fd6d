"""Model folders that would load and answer wrongly: files are missing, stand-ins, code, or say something else."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import apd
from apd.attacks.threat import ThreatModel
from apd.errors import InputError
from apd.evaluation.checks import Checked, model_checks
from apd.evaluation.frozen import Subject
from apd.models import DualEncoder, load_clip
from apd.models.classifier import PromptedCLIP
from apd.models.preprocessing import read_preprocessing

from .models import save_clip

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise RuntimeError('pickle was executed')",)


def without(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def written(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def changed(name: str, **values: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        record = json.loads((folder / name).read_text())
        for key, value in values.items():
            section, _, inner = key.rpartition("__")
            (record[section] if section else record)[inner] = value
        (folder / name).write_text(json.dumps(record))

    return spoil


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no tokenizer": (without("tokenizer.json"), r"tokenizer\.json"),
    "pointer for weights": (written("model.safetensors", POINTER), r"model\.safetensors.*git lfs pull"),
    "pointer for the tokenizer": (written("tokenizer.json", POINTER), r"tokenizer\.json.*git lfs pull"),
    "pointer for the configuration": (written("config.json", POINTER), r"config\.json.*git lfs pull"),
    "pickle alone": (pickled, r"pytorch_model\.bin"),
    "pickle by another name": (written("model.safetensors", pickle.dumps(Bomb())), r"model\.safetensors.*pickle"),
    "weights cut short": (written("model.safetensors", (10**15).to_bytes(8, "little") + b"{"), r"model\.safetensors"),
    "no weights": (without("model.safetensors"), r"model\.safetensors"),
    "code of its own": (changed("config.json", auto_map={"AutoModel": "evil.Model"}), "auto_map"),
    "oblong": (changed("config.json", vision_config__image_size={"height": 16, "width": 24}), "16 x 24"),
    "mapping": (changed("config.json", vision_config__image_size={"height": 16, "width": 16}), "image_size.*16"),
    "no size": (changed("config.json", vision_config__image_size="large"), "image_size.*large"),
    "no resize": (changed("preprocessor_config.json", do_resize=False), "do_resize"),
    "no crop": (changed("preprocessor_config.json", do_center_crop=False), "do_center_crop"),
    "no rescale": (changed("preprocessor_config.json", do_rescale=False), "do_rescale"),
    "other pixels": (changed("preprocessor_config.json", rescale_factor=1 / 127.5), "rescale_factor"),
    "another crop": (changed("preprocessor_config.json", crop_size={"height": 8, "width": 8}), "8 px.*crop_size"),
    "two means": (changed("preprocessor_config.json", image_mean=[0.1, 0.2]), "image_mean"),
    "no deviation": (changed("preprocessor_config.json", image_std=[0.1, 0.0, 0.1]), "image_std"),
    "unknown filter": (changed("preprocessor_config.json", resample="hamming"), "hamming"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_would_answer_wrongly_is_refused(name: str, tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    spoil, words = BROKEN[name]
    spoil(folder)
    with pytest.raises(InputError, match=words) as error:
        load_clip(folder)
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


def test_forms_of_preprocessing_that_mean_the_same_are_read(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    plain = load_clip(folder).info.preprocessing
    changed(
        "preprocessor_config.json",
        resample="bicubic",
        crop_size={"height": 16, "width": 16},
        do_rescale=True,
        rescale_factor=0.00392156862745098,
    )(folder)
    changed("config.json", vision_config__image_size=[16, 16])(folder)
    assert load_clip(folder).info.preprocessing == plain
    changed("preprocessor_config.json", image_mean=0.5, image_std=[0.25])(folder)
    again = load_clip(folder).info.preprocessing
    assert (again.mean, again.std) == ((0.5,) * 3, (0.25,) * 3)
    changed("preprocessor_config.json", do_normalize=False)(folder)
    raw = read_preprocessing(folder / "preprocessor_config.json", 16, "it")
    assert (raw.mean, raw.std) == ((0.0,) * 3, (1.0,) * 3)
    assert raw.apply(Image.new("RGB", (40, 30))).size == (16, 16)


def test_a_text_must_end_at_the_end_token(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    good = PromptedCLIP(load_clip(folder), None, ["cat", "dog"])
    assert good.class_features().shape[0] == 2
    changed("config.json", text_config__eos_token_id=5)(folder)
    with pytest.raises(InputError, match=r"eos_token_id.*5"):
        PromptedCLIP(load_clip(folder), None, ["cat", "dog"])


def test_texts_are_lower_cased_if_the_checkpoint_says_so(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "siglip", "siglip")
    assert not torch.equal(load_clip(folder).prompt_ids(["A Cat"]), load_clip(folder).prompt_ids(["a cat"]))
    changed("tokenizer_config.json", do_lower_case=True)(folder)
    encoder = load_clip(folder)
    assert torch.equal(encoder.prompt_ids(["A Cat"]), encoder.prompt_ids(["a cat"]))


def test_class_features_that_coincide_fail_training_and_evaluation(
    clip: DualEncoder, tmp_path: Path, colours: Path
) -> None:
    words = ["cat", "zebra", "yak"]  # the last two are unknown to this tokenizer: one text
    classifier = PromptedCLIP(clip, None, words)
    x = torch.rand(4, 3, clip.info.image_size, clip.info.image_size)
    labels = torch.zeros(4, dtype=torch.int64)
    checked = Checked(x, labels, torch.arange(4), labels, torch.ones(4, dtype=torch.bool), False)

    def verdict(names: list[str]) -> Any:
        subject = Subject.of(PromptedCLIP(clip, None, names))
        checks = model_checks(subject, checked, ThreatModel(1 / 255))
        return next(check for check in checks if check.name == "class features")

    failed = verdict(words)
    assert failed.passed is False and "'zebra'" in failed.message and "'yak'" in failed.message
    assert verdict(["cat", "dog", "piano"]).passed is True
    assert classifier.class_names == tuple(words)

    data = tmp_path / "data"
    for old, new in zip(("red", "green", "blue"), words, strict=True):
        shutil.copytree(colours / old, data / new)
    with pytest.raises(InputError, match=r"'zebra' and 'yak'|'yak' and 'zebra'"):
        apd.train(clip, apd.load_data(data, shots=1), epochs=1, output=tmp_path / "run")
    assert not (tmp_path / "run" / "prompts.safetensors").exists()
