"""Model folders that would load and answer wrongly: files are missing, stand-ins, code, or say something else."""

from __future__ import annotations

import json
import pickle
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import apd
from apd.attacks.threat import ThreatModel
from apd.evaluation.checks import Checked, model_checks
from apd.evaluation.frozen import Subject
from apd.models import DualEncoder, load_clip
from apd.models.checkpoint import WEIGHTS
from apd.models.classifier import PromptedCLIP, closest_classes
from apd.models.preprocessing import read_preprocessing
from apd.runs.config import validate
from apd.training.start import start_training
from apd.util.tensors import read_tensors

from .models import save_clip
from .refusals import refused

CODE = {"AutoModel": "evil.Model"}
PROCESSOR = "preprocessor_config.json"
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


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        tensors = load_file(file)
        tensors[name] = change(tensors[name])
        save_file(tensors, file, metadata={"format": "pt"})

    return spoil


def renamed(prefix: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file({f"{prefix}{name}": value for name, value in load_file(file).items()}, file, {"format": "pt"})

    return spoil


def with_adapter(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "text_model.encoder.layers.0.self_attn.q_proj"
    weight = tensors.pop(f"{name}.weight")
    adapter = {f"{name}.base_layer.weight": weight, f"{name}.lora_A.default.weight": torch.zeros(2, weight.shape[1])}
    save_file(tensors | adapter, file, {"format": "pt"})


def sharded(shard: str) -> Callable[[Path], None]:
    """Weights in a file that the index names."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "weights")
        names = dict.fromkeys(load_file(folder / "weights"), shard)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
        if shard.endswith(".bin"):
            (folder / shard).write_bytes(pickle.dumps(Bomb()))
        elif not shard.startswith("missing"):
            (folder / "weights").rename(folder / shard)

    return spoil


def foreign_tokens(folder: Path) -> None:
    """A tokenizer with more tokens than the text tower has embeddings."""
    record = json.loads((folder / "tokenizer.json").read_text())
    words = record["model"]["vocab"]
    words |= {word: number + 1000 for word, number in words.items() if word in ("cat", "dog")}
    (folder / "tokenizer.json").write_text(json.dumps(record))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


BROKEN: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no tokenizer": (without("tokenizer.json"), ["tokenizer.json"]),
    "pointer for weights": (written("model.safetensors", POINTER), ["model.safetensors", "git lfs pull"]),
    "pointer for the tokenizer": (written("tokenizer.json", POINTER), ["tokenizer.json", "git lfs pull"]),
    "pointer for the configuration": (written("config.json", POINTER), ["config.json", "git lfs pull"]),
    "pickle alone": (pickled, ["pytorch_model.bin", "python -c"]),
    "pickle by another name": (written("model.safetensors", pickle.dumps(Bomb())), ["model.safetensors", "pickle"]),
    "weights cut short": (written("model.safetensors", (10**15).to_bytes(8, "little") + b"{"), ["model.safetensors"]),
    "no weights": (without("model.safetensors"), ["model.safetensors"]),
    "shards of pickles": (sharded("pytorch_model.bin"), ["model.safetensors.index.json", "pytorch_model.bin"]),
    "missing shard": (sharded("missing-1.safetensors"), ["model.safetensors.index.json", "missing-1.safetensors"]),
    "not numbers": (tensor("text_projection.weight", lambda w: w * torch.nan), ["text_projection.weight"]),
    "fewer blocks": (
        changed("config.json", vision_config__num_hidden_layers=2),
        ["config.json", "num_hidden_layers", "encoder.layers.2"],
    ),
    "other shapes": (
        changed("config.json", text_config__vocab_size=7),
        ["config.json", "token_embedding.weight", "(7, 24)"],
    ),
    "no tower": (changed("config.json", vision_config=[1]), ["config.json", "vision_config"]),
    "grey": (changed("config.json", vision_config__num_channels=1), ["vision_config.num_channels", "1", "3"]),
    "tokenizer with code": (changed("tokenizer_config.json", auto_map=CODE), ["tokenizer_config.json", "auto_map"]),
    "processor with code": (changed(PROCESSOR, auto_map=CODE), [PROCESSOR, "auto_map"]),
    "code of its own": (changed("config.json", auto_map=CODE), ["config.json", "auto_map"]),
    "oblong": (
        changed("config.json", vision_config__image_size={"height": 16, "width": 24}),
        ["vision_config.image_size", "16 x 24"],
    ),
    "mapping": (
        changed("config.json", vision_config__image_size={"height": 16, "width": 16}),
        ["config.json", "vision_config.image_size", "16"],
    ),
    "no size": (changed("config.json", vision_config__image_size="large"), ["vision_config.image_size", "large"]),
    "no resize": (changed(PROCESSOR, do_resize=False), [PROCESSOR, "do_resize"]),
    "no crop": (changed(PROCESSOR, do_center_crop=False), [PROCESSOR, "do_center_crop"]),
    "no rescale": (changed(PROCESSOR, do_rescale=False), [PROCESSOR, "do_rescale False"]),
    "other pixels": (changed(PROCESSOR, rescale_factor=1 / 127.5), [PROCESSOR, f"rescale_factor {1 / 127.5}"]),
    "another crop": (changed(PROCESSOR, crop_size={"height": 8, "width": 8}), ["8 px", "16 px", "crop_size"]),
    "resized to less": (changed(PROCESSOR, size={"shortest_edge": 8}), ["8 px", "16 px", "size"]),
    "squashed to more": (changed(PROCESSOR, size={"height": 20, "width": 20}), ["20 px", "16 px", "size"]),
    "longest edge": (changed(PROCESSOR, size={"shortest_edge": 16, "longest_edge": 20}), ["size", "shortest_edge"]),
    "padded": (changed(PROCESSOR, do_pad=True), [PROCESSOR, "do_pad"]),
    "channels in another order": (changed(PROCESSOR, do_flip_channel_order=True), [PROCESSOR, "do_flip_channel_order"]),
    "scale without its logarithm": (tensor("logit_scale", torch.exp), ["logit_scale", "5.3"]),
    "prefix": (renamed("module."), ["'module.'"]),
    "adapter": (with_adapter, ["LoRA", "lora_A"]),
    "mean for 0 to 255": (changed(PROCESSOR, image_mean=[123.7, 116.3, 103.5]), ["image_mean", "123.7"]),
    "mean that is not a number": (changed(PROCESSOR, image_mean=[float("nan")] * 3), ["image_mean", "nan"]),
    "negative deviation": (changed(PROCESSOR, image_std=[-0.2, 0.2, 0.2]), ["image_std", "-0.2"]),
    "two means": (changed(PROCESSOR, image_mean=[0.1, 0.2]), ["image_mean", "[0.1, 0.2]"]),
    "no deviation": (changed(PROCESSOR, image_std=[0.1, 0.0, 0.1]), ["image_std", "[0.1, 0.0, 0.1]"]),
    "unknown filter": (changed(PROCESSOR, resample="hamming"), ["resample", "hamming", "bicubic"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_would_answer_wrongly_is_refused(name: str, tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    spoil, names = BROKEN[name]
    spoil(folder)
    with refused(str(folder), *names) as error:
        load_clip(folder)
    assert "weights_only" not in str(error.value)


def run_conversion(message: str) -> None:
    """Run the Python command that an error suggests."""
    command = shlex.split(message[message.index("python -c") :])
    exec(command[2])


def test_a_pickle_is_converted_as_the_error_says(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "it's a clip")
    plain = load_clip(folder).info
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with refused("pytorch_model.bin") as error:
        load_clip(folder)
    run_conversion(str(error.value))
    assert load_clip(folder).info == plain


COMMIT = "1" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody's model in the hub's cache on this machine, which is offline; the folder of its files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "cache" / "models--somebody--clip"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    return save_clip(model / "snapshots" / COMMIT)


def test_a_hub_model_loads_from_the_cache(hub: Path) -> None:
    info = load_clip("somebody/clip").info
    assert (info.source, info.revision) == ("somebody/clip", COMMIT)
    assert load_clip("somebody/clip", revision=COMMIT).info == info


@pytest.mark.parametrize("known", ["pickle held", "safetensors known to be missing"])
def test_a_hub_model_of_pickles_is_refused_before_training(
    known: str, hub: Path, tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (hub / "model.safetensors").unlink()
    if known == "pickle held":
        (hub / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    else:  # as the hub's answer is kept
        missing = hub.parents[1] / ".no_exist" / COMMIT
        missing.mkdir(parents=True)
        for name in WEIGHTS:
            (missing / name).touch()
        # The hub is reached, but what it has answered is not asked again; nor may its conversion service be.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("transformers.modeling_utils.auto_conversion", lambda *_, **__: pytest.fail("converted"))
    with refused(
        "model.safetensors", f"hf download somebody/clip --revision {COMMIT} --local-dir clip && python -c"
    ) as error:
        load_clip("somebody/clip", revision=COMMIT)
    assert "use_safetensors" not in str(error.value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = {"model": "somebody/clip", "data": {"source": str(colours), "shots": 1}, "train": {"epochs": 1}}
    with refused("hf download somebody/clip --local-dir clip"):
        start_training(validate(config), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_in_the_cache_are_not_called_pickles(hub: Path) -> None:
    (hub / "model.safetensors").unlink()
    with refused("somebody/clip", "HF_HUB_OFFLINE"):
        load_clip("somebody/clip")


def test_files_that_are_not_read_may_be_anything(tmp_path: Path) -> None:
    """A clone for one library: pointers instead of the others' weights, and other weights beside the model's."""
    folder = save_clip(tmp_path / "clip")
    plain = load_clip(folder).info
    for name in ("pytorch_model.bin", "flax_model.msgpack", "open_clip_model.safetensors"):
        (folder / name).write_bytes(POINTER)
    (folder / "optimizer.safetensors").write_bytes(b"cut")
    assert load_clip(folder).info == plain
    sharded("model-1.safetensors")(folder)
    assert load_clip(folder).info == plain


def test_prompts_that_are_a_pointer_name_git_lfs(tmp_path: Path) -> None:
    (tmp_path / "prompts.safetensors").write_bytes(POINTER)
    with refused("prompts.safetensors", "git lfs pull"):
        read_tensors(tmp_path / "prompts.safetensors", "train again")


def test_a_tokenizer_without_its_packages_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_clip(tmp_path / "siglip", "siglip")
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(b"not a model")
    changed("tokenizer_config.json", tokenizer_class="SiglipTokenizer")(folder)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with refused("sentencepiece", "'adversarial-prompt-distillation[siglip]'"):
        load_clip(folder)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    foreign_tokens(folder)
    cat = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]["cat"]
    with refused(str(folder), str(cat), "22"):
        PromptedCLIP(load_clip(folder), None, ["cat", "dog"])


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
    nothing = dict.fromkeys(["do_center_crop", "crop_size", "do_normalize", "rescale_factor", "do_pad", "resample"])
    changed("preprocessor_config.json", **nothing, size={"shortest_edge": 20, "height": None})(folder)
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
    with refused("config.json", "text_config.eos_token_id", "5"):
        PromptedCLIP(load_clip(folder), None, ["cat", "dog"])


def test_texts_are_lower_cased_if_the_checkpoint_says_so(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "siglip", "siglip")
    assert not torch.equal(load_clip(folder).prompt_ids(["A Cat"]), load_clip(folder).prompt_ids(["a cat"]))
    changed("tokenizer_config.json", do_lower_case=True)(folder)
    encoder = load_clip(folder)
    assert torch.equal(encoder.prompt_ids(["A Cat"]), encoder.prompt_ids(["a cat"]))


@pytest.mark.parametrize(("stated", "lower"), [({}, True), ({"do_lower_case": False}, False)])
def test_siglip_2_is_lower_cased_unless_it_says_otherwise(stated: dict[str, bool], lower: bool, tmp_path: Path) -> None:
    """SigLIP 2 is published as a SigLIP with Gemma's tokenizer."""
    folder = save_clip(tmp_path / "siglip", "siglip")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = {word: number for number, word in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "C", "c", "a", "t"])}
    tokenizer["model"] = {"type": "BPE", "vocab": words, "merges": [], "unk_token": "<unk>"}
    tokenizer |= {"post_processor": None, "added_tokens": [], "pre_tokenizer": None, "decoder": None}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GemmaTokenizer", **stated}))
    encoder = load_clip(folder)
    assert torch.equal(encoder.prompt_ids(["Cat"]), encoder.prompt_ids(["cat"])) is lower


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
    assert closest_classes(torch.zeros(3, 4))[0] == 1  # and not the cosine 0 of features that differ
    assert classifier.class_names == tuple(words)

    data = tmp_path / "data"
    for old, new in zip(("red", "green", "blue"), words, strict=True):
        shutil.copytree(colours / old, data / new)
    with refused("'zebra'", "'yak'"):
        apd.train(clip, apd.load_data(data, shots=1), epochs=1, output=tmp_path / "run")
    assert not (tmp_path / "run" / "prompts.safetensors").exists()
