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
from apd.models.encoder import DualEncoder, EncoderInfo, Tokens, sha256_of_weights
from apd.models.preprocessing import Preprocessing
from apd.util.plugins import Registry, is_spec

__all__ = ["DualEncoder", "EncoderInfo", "Preprocessing", "Tokens", "list_models", "load_clip"]

BUILT_IN = {"glyphs": "the embedded CLIP: 32 px, digits and letters, pre-trained on rendered glyphs"}


def list_models() -> list[tuple[str, str]]:
    """Names and descriptions of what `load_clip` takes."""
    return [
        *BUILT_IN.items(),
        ("openai/clip-vit-base-patch32", "a hub id: any CLIP or SigLIP in the Hugging Face format"),
        ("path/to/folder", "a local folder of that format, adversarially fine-tuned towers included"),
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
            SigLIP families in the Hugging Face format. After the first download it works offline. Or an encoder of your
            own: its class, an instance (which stays on its device), or ``"package.module:factory"``.
        revision: branch, tag or commit of a hub id.
        dtype: type of the weights; float32 unless asked, whatever the checkpoint was saved in.
        device: where to put it.

    Raises:
        InputError: unknown id, broken folder, missing weights, unsupported family.

    Example:
        >>> import apd
        >>> clip = apd.load_clip("glyphs")
        >>> clip.info.image_size
        32
    """
    from apd.models.huggingface import load_huggingface

    if isinstance(source, DualEncoder):
        return _completed(source, "")
    if isinstance(source, type):
        source = MODELS.name_of(source)
    name = str(source)
    if not isinstance(source, Path) and names_code(name):
        encoder = MODELS.make(name)
        if not isinstance(encoder, DualEncoder):
            raise InputError(f"The model {name!r} makes a {type(encoder).__name__}, not an apd.models.DualEncoder.")
        return _completed(encoder, name).to(device)
    return load_huggingface(name, _folder_or_id(name), revision, dtype).to(device)


def _folder_or_id(name: str) -> str:
    """Return the checked folder, or the hub id, that a model's name stands for."""
    if name in BUILT_IN:
        return str(files("apd") / "assets" / name)
    if Path(name).is_dir():
        folder = Path(name).resolve()
        if not (folder / "config.json").is_file():
            raise InputError(
                f"The folder {name!r} holds no config.json; a model folder of the Hugging Face format does."
            )
        check_folder(folder, name)
        return str(folder)
    if name.count("/") == 1 and not name.startswith((".", "/")):
        return name
    raise InputError(f"No model {name!r}: neither a folder nor a hub id (owner/name). {nearest(name, BUILT_IN)}")


def names_code(source: str) -> bool:
    """Whether a model's source names code that makes it, whatever folders there are."""
    return is_spec(source) or MODELS.knows(source)


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
