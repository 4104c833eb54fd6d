"""Load CLIP models behind one interface."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import torch

from apd.errors import InputError, nearest
from apd.models.checkpoint import check_folder
from apd.models.encoder import DualEncoder, EncoderInfo, Tokens
from apd.models.preprocessing import Preprocessing
from apd.models.sources import BUILT_IN, HUB, OPEN_CLIP_CONFIG, PREFIXES, is_weights_file, split_tower
from apd.util.device import pick_device
from apd.util.files import user_path
from apd.util.hub import can_be_on_hub, hub_or_cache, means_hub
from apd.util.plugins import Registry, is_spec
from apd.util.tensors import sha256_of_weights

__all__ = ["BUILT_IN", "DualEncoder", "EncoderInfo", "Preprocessing", "Tokens", "list_models", "load_clip"]


def list_models() -> list[tuple[str, str]]:
    """Names and descriptions of what `load_clip` takes."""
    return [
        *BUILT_IN.items(),
        ("openai/clip-vit-base-patch32", "a hub id: any CLIP or SigLIP in the Hugging Face format"),
        (
            "open_clip:ViT-B-32/laion2b_s34b_b79k",
            "a name and tag of open_clip; hf-hub:owner/name for its other repositories",
        ),
        ("path/to/folder", "a local folder of the Hugging Face format or of open_clip's"),
        ("path/to/ViT-B-32.pt", "a file of OpenAI's CLIP"),
        ("MODEL+path/to/tower.pt", "any of these with the weights of a fine-tuned image tower (FARE, TeCoA)"),
        ("package.module:factory", "an encoder of your own (docs/extending.md)"),
    ]


def _problem(found: object) -> str | None:
    return None if callable(found) else "is not a function or class that makes a DualEncoder"


MODELS: Registry[Callable[[], DualEncoder]] = Registry("model", "apd.models", {}, _problem)
"""Makers of models of other packages, or as ``package.module:factory``."""


def load_clip(
    source: str | Path | type[DualEncoder] | DualEncoder,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> DualEncoder:
    """Load a frozen CLIP.

    Args:
        source: ``"glyphs"`` (embedded), a hub id such as ``"openai/clip-vit-base-patch32"``, or a local folder; CLIP and
            SigLIP families in the Hugging Face format. After the first download it works offline. Of open_clip: a folder,
            ``"open_clip:NAME/TAG"`` or ``"hf-hub:owner/name"``. A file of OpenAI's, or ``"MODEL+FILE"`` with the weights of
            a fine-tuned tower (docs/models.md). Or an encoder of your own: its class, an instance (which stays on its
            device), or ``"package.module:factory"``.
        revision: branch, tag or commit of a hub id.
        dtype: type of the weights; float32 unless asked, whatever the checkpoint was saved in.
        device: where to put it; ``auto`` for the best there is.

    Raises:
        InputError: unknown id, broken folder, missing weights, unsupported family, a device that is not there.

    Example:
        >>> import apd
        >>> clip = apd.load_clip("glyphs")
        >>> clip.info.image_size
        32
    """
    if isinstance(source, DualEncoder):
        return _completed(source, "")
    if isinstance(source, type):
        source = MODELS.name_of(source)
    name = str(user_path(source) if str(source).startswith("~") else source)
    if not isinstance(source, Path) and names_code(name):
        encoder = MODELS.make(name)
        if not isinstance(encoder, DualEncoder):
            raise InputError(f"The model {name!r} makes a {type(encoder).__name__}, not an apd.models.DualEncoder.")
        return _completed(encoder, name).to(pick_device(str(device)))
    return _load(name, revision, dtype).to(pick_device(str(device)))


def _load(name: str, revision: str | None, dtype: torch.dtype) -> DualEncoder:
    """Load what is not code by the form of its name."""
    from apd.models.foreign.open_clip import load_open_clip
    from apd.models.foreign.openai import load_openai
    from apd.models.foreign.towers import with_tower
    from apd.models.huggingface import HuggingFaceEncoder, load_huggingface

    user_path(name)  # refuses what no file can be called
    tower = split_tower(name)
    if tower:
        base = load_clip(tower[0], revision=revision, dtype=dtype)
        if not isinstance(base, HuggingFaceEncoder):
            raise InputError(
                f"{name}: the tower of {tower[0]} is made by code; only towers of CLIP and SigLIP can be replaced."
            )
        return with_tower(base, tower[1], name)
    if is_weights_file(name):
        return load_openai(name, Path(name), dtype)
    folder = Path(name)
    if (folder / OPEN_CLIP_CONFIG).is_file() and not (folder / "config.json").is_file():
        return load_open_clip(name, str(folder.resolve()), revision, dtype)
    if name.startswith(HUB) and not can_be_on_hub(name.removeprefix(HUB)):
        raise InputError(f"No model {name!r}: after {HUB} stands the id of a repository, {HUB}owner/name.")
    at = name if name.startswith(PREFIXES) else _folder_or_id(name, revision)
    with hub_or_cache(at):
        return (load_open_clip if at.startswith(PREFIXES) else load_huggingface)(name, at, revision, dtype)


def _folder_or_id(name: str, revision: str | None) -> str:
    """Return the checked folder, or the hub id, that a model's name stands for."""
    if name in BUILT_IN:
        return str(files("apd") / "assets" / name)
    if Path(name).is_dir():
        folder = Path(name).resolve()
        if not (folder / "config.json").is_file():
            raise InputError(
                f"The folder {name!r} holds no config.json; a model folder of the Hugging Face format does, and one of open_clip "
                f"holds open_clip_config.json."
            )
        check_folder(folder, name)
        return str(folder)
    if means_hub(name, revision):
        return name
    raise InputError(f"No model {name!r}: {_why_none(name)}")


def _why_none(name: str) -> str:
    """Say what is wrong with a model's name that is neither a folder's nor a hub id, and the way out."""
    parent = Path(name).parent
    if name.count("/") == 1 and can_be_on_hub(name):
        beside = [f"{parent}/{entry.name}" for entry in parent.iterdir() if entry.is_dir()]
        meant = f" {nearest(name, beside)}" if beside else ""
        none = f"the folder {str(parent)!r} holds no {Path(name).name!r}.{meant}"
        return f"{none} If a hub id is meant, call it from where there is no such folder."
    return f"neither a folder nor a hub id (owner/name). {nearest(name, BUILT_IN)}"


def names_code(source: str) -> bool:
    """Whether a model's source names code that makes it, whatever folders there are."""
    return not source.startswith(PREFIXES) and (is_spec(source) or MODELS.knows(source))


def _completed(encoder: DualEncoder, source: str) -> DualEncoder:
    """Freeze an encoder, and fill in what the `EncoderInfo` of one from elsewhere leaves out.

    Args:
        encoder: of any kind.
        source: what made it; empty: its class.
    """
    encoder.eval().requires_grad_(False)
    info = encoder.info
    if encoder.found_by_source:
        return encoder
    if not source:
        source = info.source if names_code(info.source) else MODELS.name_of(type(encoder))
    texts = None if info.tokenizer_sha256 else encoder.prompt_ids(["a", "a photo of a dog."]).tolist()
    encoder.info = replace(
        info,
        source=source,
        weights_sha256=info.weights_sha256 or sha256_of_weights(encoder),
        tokenizer_sha256=info.tokenizer_sha256 or hashlib.sha256(repr(texts).encode()).hexdigest(),
    )
    return encoder
