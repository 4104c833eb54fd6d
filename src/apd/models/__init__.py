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
            own: its class, an instance, or ``"package.module:factory"``.
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

    if isinstance(source, type | DualEncoder):
        return _own(source, None).to(device)
    name = str(source)
    if is_spec(name) or MODELS.knows(name):
        return _own(MODELS.find(name), name).to(device)
    if name in BUILT_IN:
        place = str(files("apd") / "assets" / name)
    elif Path(name).is_dir():
        place = str(Path(name).resolve())
        if not (Path(place) / "config.json").is_file():
            raise InputError(
                f"The folder {name!r} holds no config.json; a model folder of the Hugging Face format does."
            )
        check_folder(Path(place), name)
    elif name.count("/") == 1 and not name.startswith((".", "/")):
        place = name
    else:
        raise InputError(f"No model {name!r}: neither a folder nor a hub id (owner/name). {nearest(name, BUILT_IN)}")
    return load_huggingface(name, place, revision, dtype).to(device)


def _own(source: Callable[[], DualEncoder] | DualEncoder, name: str | None) -> DualEncoder:
    """Make an encoder from elsewhere, frozen, and fill in what its `EncoderInfo` leaves out.

    Raises:
        InputError: it is not a `DualEncoder`.
    """
    encoder = source if isinstance(source, DualEncoder) else source()
    if not isinstance(encoder, DualEncoder):
        raise InputError(f"The model {name or source!r} is a {type(encoder).__name__}, not an apd.models.DualEncoder.")
    encoder.eval().requires_grad_(False)
    info = encoder.info
    texts = encoder.prompt_ids(["a", "a photo of a dog."]).tolist() if not info.tokenizer_sha256 else None
    encoder.info = replace(
        info,
        source=name or info.source or MODELS.name_of(source if isinstance(source, type) else type(encoder)),
        weights_sha256=info.weights_sha256 or sha256_of_weights(encoder),
        tokenizer_sha256=info.tokenizer_sha256 or hashlib.sha256(repr(texts).encode()).hexdigest(),
    )
    return encoder
