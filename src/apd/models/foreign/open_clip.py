"""open_clip's models: folders, hub repositories and names, read without the package open_clip."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from apd.errors import InputError, nearest
from apd.models.checkpoint import check_no_code, read_json, square
from apd.models.foreign.build import build_encoder
from apd.models.foreign.layouts import Tensors, Towers, unwrapped
from apd.models.foreign.open_clip_config import is_other_timm, read_plan, reading_config
from apd.models.foreign.timm_tower import build_timm
from apd.models.foreign.tokenizers import CLIP_VOCABULARY, clean_as, clip_tokenizer, strip_separator
from apd.models.hub import unreachable
from apd.models.preprocessing import Preprocessing
from apd.models.sources import HUB, NAMES, PREFIXES
from apd.models.sources import OPEN_CLIP_CONFIG as CONFIG
from apd.util.files import is_lfs_pointer
from apd.util.hub import hub_or_cache
from apd.util.text import one_line, printable
from apd.util.torch_files import read_torch_file

if TYPE_CHECKING:
    from apd.models.huggingface import HuggingFaceEncoder

WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
"""Files of weights; the first that is there is read, as open_clip does."""
_TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "vocab.txt")
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Place:
    """A folder, or a repository on the hub.

    Args:
        at: the folder, or owner/name.
        local: whether it is a folder.
        source: how the user calls it.
        revision: branch, tag or commit of a repository.
    """

    at: str
    local: bool
    source: str
    revision: str | None = None

    def file(self, *names: str) -> Path | None:
        """Find the first of these files that is there, from the cache or the hub; None where there is none.

        Raises:
            InputError: none is in the cache, and the hub is not reached; no such repository; a Git LFS pointer.
        """
        offline = None
        for name in names:
            if self.local:
                path: Path | None = Path(self.at) / name
            else:
                path, problem = self._from_hub(name)
                offline = offline or problem
            if path is not None and is_lfs_pointer(path):
                raise InputError(f"{path} is a Git LFS pointer instead of a file; to get the file: git lfs pull")
            if path is not None and path.is_file():
                return path
        if offline:
            raise InputError(offline)
        return None

    def _from_hub(self, name: str) -> tuple[Path | None, str | None]:
        """A file of the repository, or why it cannot be said whether there is one."""
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
        from transformers.utils.hub import cached_file

        try:
            found = cached_file(self.at, name, revision=self.revision)
            return Path(found) if found else None, None
        except OSError as error:
            problem = unreachable(self.source, error)
            absent = isinstance(error.__cause__, EntryNotFoundError) and not isinstance(
                error.__cause__, LocalEntryNotFoundError
            )
            if problem is None and not absent:
                raise InputError(f"No model at {self.source!r}: {one_line(error, 200)}") from error
            return None, problem

    def has(self, *names: str) -> bool:
        """Whether one of these files is there; False where the hub is not reached."""
        try:
            return self.file(*names) is not None
        except InputError:
            return False

    def commit(self) -> str | None:
        """The commit that the files are of; None for a folder."""
        if self.local:
            return None
        from transformers.utils.hub import extract_commit_hash

        return extract_commit_hash(str(self.file(CONFIG)), None) or self.revision


def load_open_clip(source: str, at: str, revision: str | None, dtype: torch.dtype) -> HuggingFaceEncoder:
    """Load a model of open_clip.

    Args:
        source: how the user calls it.
        at: a folder with ``open_clip_config.json``, ``hf-hub:owner/name``, or ``open_clip:NAME/TAG``.
        revision: branch, tag or commit of a hub repository.
        dtype: type of the weights.

    Raises:
        InputError: an unknown name, files that are missing or damaged, an architecture that is not supported.
    """
    quick_gelu, local = None, not at.startswith(PREFIXES)
    if at.startswith(NAMES):
        at, quick_gelu = find_name(at.removeprefix(NAMES))
    place = Place(at.removeprefix(HUB), local, source, revision)
    config = place.file(CONFIG)
    if config is None:
        raise InputError(
            f"{source} has no {CONFIG}. A model in the Hugging Face format is given without {HUB}, as owner/name or a folder."
        )
    record = read_json(config, source)
    for name in ("model_cfg", "preprocess_cfg"):
        if not isinstance(record.get(name) or {}, Mapping) or (name == "model_cfg" and not record.get(name)):
            raise InputError(f"{source}: {name} in {CONFIG} must be a JSON object; restore it.")
    model = dict(record["model_cfg"])
    model["quick_gelu"] = model.get("quick_gelu", False) if quick_gelu is None else quick_gelu
    towers = Towers.of(_weights(place))
    if is_other_timm(model, source):
        side = square(model["vision_cfg"].get("image_size", 224), "vision_cfg.image_size", source)
        processing = read_preprocess_cfg(record.get("preprocess_cfg") or {}, side, f"{source}: {CONFIG}")
        tokenizer = _tokenizer(place, model["text_cfg"])
        return build_timm(model, towers, tokenizer, processing, source, place.commit(), dtype)
    towers.image = {name.removeprefix("trunk."): value for name, value in towers.image.items()}
    plan = read_plan(model, {name: tuple(value.shape) for name, value in towers.image.items()}, source)
    preprocessing = read_preprocess_cfg(
        record.get("preprocess_cfg") or {}, plan.config.vision_config.image_size, f"{source}: {CONFIG}"
    )
    tokenizer = _tokenizer(place, model["text_cfg"])
    return build_encoder(plan, towers, tokenizer, preprocessing, source, place.commit(), dtype)


def _weights(place: Place) -> Tensors:
    file = place.file(*WEIGHTS)
    if file is None:
        raise InputError(f"{place.source} has no weights: {' or '.join(WEIGHTS)} is missing. Download the model again.")
    return state_dict(read_torch_file(file, place.source), place.source)


def state_dict(content: Any, source: str) -> Tensors:
    """Find the weights in what a file holds: its tensors, or those of the entry that training code keeps them in.

    Raises:
        InputError: no weights.
    """
    entry: Any = content
    for name in ("vision_encoder_state_dict", "state_dict", "model_state_dict", "model"):
        if isinstance(entry, Mapping) and isinstance(entry.get(name), Mapping):
            entry = entry[name]
            break
    if isinstance(entry, Mapping):
        tensors = {str(name): tensor for name, tensor in entry.items() if isinstance(tensor, torch.Tensor)}
        if tensors:
            return unwrapped(tensors)
    raise InputError(f"{source}: the file holds no weights (a dictionary of tensors, or state_dict in it).")


def read_preprocess_cfg(record: Mapping[str, Any], image_size: int, about: str) -> Preprocessing:
    """Read the section ``preprocess_cfg``; what it leaves out is as for OpenAI's models.

    Args:
        record: the section.
        image_size: in pixels.
        about: source and file, for messages.

    Raises:
        InputError: another way of resizing or interpolating, or values that are not three numbers.
    """
    mode = record.get("resize_mode", "shortest")
    interpolation = record.get("interpolation", "bicubic")
    if mode not in ("shortest", "squash") or interpolation not in ("bicubic", "bilinear"):
        raise InputError(
            f"{about}: preprocess_cfg has resize_mode {printable(str(mode))} and interpolation {printable(str(interpolation))}; "
            "supported: shortest or squash, bicubic or bilinear."
        )
    values = {}
    for name, usual in (("mean", _MEAN), ("std", _STD)):
        given = record.get(name) or usual
        try:
            values[name] = cast(tuple[float, float, float], tuple(float(value) for value in given))
        except (TypeError, ValueError):
            values[name] = cast(Any, ())
        least = 0.0 if name == "mean" else 1e-6
        if len(values[name]) != 3 or not all(least <= value <= 1 for value in values[name]):
            raise InputError(
                f"{about}: preprocess_cfg.{name} must be three numbers for pixels in [0,1], got {str(given)[:60]}."
            )
    shape: Literal["crop", "squash"] = "crop" if mode == "shortest" else "squash"
    return Preprocessing(image_size, image_size, shape, cast(Any, interpolation), values["mean"], values["std"])


def _tokenizer(place: Place, text: Mapping[str, Any]) -> Any:
    """The tokenizer that open_clip would take: OpenAI's, unless the configuration names one."""
    with reading_config(place.source):
        length, vocabulary = int(text.get("context_length", 77)), int(text.get("vocab_size", CLIP_VOCABULARY))
    asked = text.get("hf_tokenizer_name")
    if not asked and vocabulary == CLIP_VOCABULARY:
        return clip_tokenizer(length)
    own = place.has(*_TOKENIZERS)
    if not own and not asked:
        raise InputError(
            f"{place.source}: the vocabulary has {text.get('vocab_size')} tokens, and there is no tokenizer.json beside them."
        )
    from transformers import AutoTokenizer

    at, revision = (place.at, place.revision) if own else (str(asked), None)
    try:
        with hub_or_cache(at):
            tokenizer = AutoTokenizer.from_pretrained(at, revision=revision, trust_remote_code=False)
    except Exception as error:  # the libraries raise a dozen kinds for what is not a tokenizer
        why = one_line(error, 200)
        raise InputError(
            unreachable(place.source, error) or f"{place.source}: the tokenizer {printable(at)} cannot be read: {why}"
        ) from error
    check_no_code(tokenizer.init_kwargs, "tokenizer_config.json", place.source)
    options = text.get("tokenizer_kwargs") or {}
    # As open_clip's HFTokenizer: texts are not lower-cased unless asked for.
    clean_as(tokenizer, str(options.get("clean", "whitespace")), place.source)
    if options.get("strip_sep_token"):
        strip_separator(tokenizer, place.source)
    return tokenizer


def find_name(name: str) -> tuple[str, bool | None]:
    """Find ``NAME/TAG`` in the table of open_clip's models: the hub repository, and whether it was trained with QuickGELU.

    Raises:
        InputError: an unknown name or tag.
    """
    model, _, tag = name.partition("/")
    table = names()
    if model not in table:
        raise InputError(
            f"open_clip has no model {printable(model)!r} that is on the hub. {nearest(model, list(table))} Any other repository "
            f"with {CONFIG} is given as {HUB}owner/name."
        )
    tags = table[model]
    if tag not in tags:
        choice = ", ".join(f"{model}/{known}" for known in tags)
        raise InputError(f"open_clip has no weights {printable(tag)!r} of {model}; choose one of: {choice}.")
    found = tags[tag]
    return found.removesuffix(":quick_gelu"), found.endswith(":quick_gelu") or None


@cache
def names() -> dict[str, dict[str, str]]:
    """The table of open_clip's models: name and tag to the hub repository, ``:quick_gelu`` after it where that is meant."""
    text = (files("apd") / "assets" / "open_clip.json").read_text(encoding="utf-8")
    return cast(dict[str, dict[str, str]], json.loads(text))
