"""Check the files of a model folder before any library opens them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apd.errors import InputError
from apd.models.families import FAMILIES
from apd.util.files import is_lfs_pointer
from apd.util.files import read_json as read_bounded_json
from apd.util.text import printable, quoted

_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",), ("tokenizer.model",))
"""Files that make a tokenizer, any one group of which is enough."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""Files that hold weights, or say which files do; the first that exists is read."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_folder(folder: Path, source: str) -> None:
    """Refuse a folder that lacks files, holds Git LFS pointers, weights as a pickle, or needs code of its own.

    Raises:
        InputError: naming the files and the way out.
    """
    # Weights for other libraries often stay pointers, which does not matter.
    _check_pulled([path for pattern in ("*.json", "*.txt", "*.model") for path in folder.glob(pattern)], source)
    config = read_json(folder / "config.json", source)
    check_config(config, source)
    if (folder / "adapter_config.json").exists():  # with peft installed, it would name another model to load
        raise InputError(f"{source}: adapter_config.json is of an adapter; merge it into its model (merge_and_unload).")
    weights = _weights(folder, source)
    _check_pulled(weights, source)
    for path in weights:
        _check_safetensors(path, source)
    _check_count(config, sum(path.stat().st_size for path in weights), source)
    if not any(all((folder / name).is_file() for name in group) for group in _TOKENIZERS):
        wanted = " or ".join(" and ".join(group) for group in _TOKENIZERS)
        raise InputError(
            f"{source}: the tokenizer is missing: {wanted}. Copy it from the model that this one was made from; without it "
            "all class names would read alike."
        )


def _check_count(config: Mapping[str, Any], held: int, source: str) -> None:
    """Refuse a configuration of more weights than the files have bytes, for which room would be made before it is noticed.

    Args:
        config: with its towers checked.
        held: bytes of all files of weights.
        source: how the user calls it.

    Raises:
        InputError: naming both numbers.
    """
    asked = sum(_fewest_weights(config.get(name, {})) for name in ("text_config", "vision_config"))
    if asked > held:
        raise InputError(
            f"{source}: config.json asks for {asked:,} weights or more, but the files of weights have {held:,} bytes; restore "
            "config.json, or download the model again."
        )


def _fewest_weights(tower: Mapping[str, Any]) -> int:
    """The number of weights in embeddings and blocks that a tower's configuration asks for; what it leaves out is small."""

    def of(name: str) -> int:
        value = tower.get(name, 0)
        return value if isinstance(value, int) and value > 0 else 0

    width = of("hidden_size")
    patches = of("image_size") // of("patch_size") if of("patch_size") else 0
    rows = of("vocab_size") + of("max_position_embeddings") + patches**2
    return width * (rows + of("num_hidden_layers") * (4 * width + 2 * of("intermediate_size")))


def _check_pulled(files: list[Path], source: str) -> None:
    """Refuse files whose content Git LFS has not fetched."""
    pointers = sorted(printable(path.name) for path in files if is_lfs_pointer(path))
    if pointers:
        raise InputError(
            f"{source}: these are Git LFS pointers instead of model files: {', '.join(pointers[:3])}; to get the files: "
            "git lfs pull"
        )


def _weights(folder: Path, source: str) -> list[Path]:
    """List the files of weights that will be read: one, or the shards that an index names."""
    single, index = (folder / name for name in WEIGHTS)
    if single.is_file():
        return [single]
    if index.is_file():
        shards = read_json(index, source).get("weight_map")
        names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
        odd = [
            name
            for name in names
            if not name.endswith(".safetensors") or Path(name).name != name or not (folder / name).is_file()
        ]
        if odd or not names:
            raise InputError(
                f"{source}: {index.name} names {printable(odd[0]) if odd else 'no file'}, which is not a safetensors file of "
                "this folder. Download the model again."
            )
        return [folder / name for name in names]
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise InputError(
            f"{source}: the weights are a pickle only ({printable(pickles[0])}), which can run code when it is opened and "
            f"is never opened here. {how_to_convert(str(folder))}"
        )
    raise InputError(f"{source}: there are no weights; {single.name} is missing. Download the model again.")


def how_to_convert(folder: str, first: str = "") -> str:
    """Tell how a pickle of weights is turned into safetensors, with the commands at the end.

    Args:
        folder: of the model; the safetensors are written beside the pickle.
        first: a command that comes before.
    """
    code = f"from transformers import AutoModel; AutoModel.from_pretrained({folder!r}).save_pretrained({folder!r})"
    command = f"{first} && python" if first else "python"
    return f"If you trust it, convert it and give the folder {quoted(folder)} as the model: {command} -c {quoted(code)}"


def check_config(config: dict[str, Any], source: str) -> None:
    """Refuse a model that needs code of its own, is of another family, or that does not take square images.

    Raises:
        InputError: the configuration names code, or another shape.
    """
    check_no_code(config, "config.json", source)
    if config.get("quantization_config"):  # which would import the package that it names
        raise InputError(
            f"{source}: config.json asks for quantised weights, which are not read; use those it was made from."
        )
    family = config.get("model_type")
    known = list(dict.fromkeys(each.model_type for each in FAMILIES))
    if family not in known:
        raise InputError(f"{source!r} is a {printable(str(family))} model; supported families: {', '.join(known)}.")
    vision = config.get("vision_config", {})
    for name, tower in (("text_config", config.get("text_config", {})), ("vision_config", vision)):
        if not isinstance(tower, dict):
            raise InputError(f"{source}: {name} in config.json must be a JSON object; restore it.")
    if vision.get("num_channels", 3) != 3:
        raise InputError(
            f"{source}: vision_config.num_channels is {str(vision['num_channels'])[:20]}; only 3 is supported."
        )
    size = vision.get("image_size")
    if size is not None:
        side = square(size, "vision_config.image_size", source)
        if isinstance(size, dict):  # which the transformers library does not take
            raise InputError(f"{source}: vision_config.image_size is a mapping in config.json; write it as {side}.")


def check_no_code(record: Mapping[str, Any], file: str, source: str) -> None:
    """Refuse a file that asks for Python code beside the model.

    Raises:
        InputError: it has an ``auto_map``.
    """
    if record.get("auto_map"):
        raise InputError(
            f"{source}: {file} names code of the model's own (auto_map), which is never run here. Use a CLIP or SigLIP "
            "model of the transformers library."
        )


def read_json(file: Path, source: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: the file cannot be read, or is not a JSON object.
    """
    try:
        content = read_bounded_json(file, "restore it")
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{source}: {file.name} must hold a JSON object; restore it.")
    return content


def _check_safetensors(path: Path, source: str) -> None:
    """Refuse a file that is not safetensors, such as a renamed pickle, or whose header is longer than the file."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(9)
    header = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:9] != b"{" or header > size - 8:
        pickle = start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        what = "a pickle, which is never opened here" if pickle else "cut short or damaged"
        raise InputError(
            f"{source}: {printable(path.name)} is not a safetensors file but {what}. Download the model again."
        )


def square(size: object, name: str, source: str) -> int:
    """Read the side of a square from a number, a pair or a mapping with height and width.

    Raises:
        InputError: not a size, or not a square.
    """
    sides: object = size
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        sides = [size["height"], size["width"]]
    if isinstance(sides, list | tuple) and len(sides) == 2:
        if sides[0] != sides[1]:
            raise InputError(f"{source}: {name} is {sides[0]} x {sides[1]}; only square images are supported.")
        sides = sides[0]
    if isinstance(sides, bool) or not isinstance(sides, int) or not 0 < sides <= 4096:
        raise InputError(f"{source}: {name} must be the side of a square in pixels, got {str(size)[:60]}.")
    return sides
