"""A CLIP from anywhere, seen in one way."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch

from apd.errors import InputError, nearest
from apd.models.checkpoint import check_folder
from apd.models.encoder import DualEncoder, EncoderInfo, Tokens
from apd.models.preprocessing import Preprocessing

__all__ = ["DualEncoder", "EncoderInfo", "Preprocessing", "Tokens", "list_models", "load_clip"]

BUILT_IN = {"glyphs": "the embedded CLIP: 32 px, digits and letters, pre-trained on rendered glyphs"}


def list_models() -> list[tuple[str, str]]:
    """Names and descriptions of what `load_clip` takes."""
    return [
        *BUILT_IN.items(),
        ("openai/clip-vit-base-patch32", "a hub id: any CLIP or SigLIP in the Hugging Face format"),
        ("path/to/folder", "a local folder of that format, adversarially fine-tuned towers included"),
    ]


def load_clip(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> DualEncoder:
    """Load a frozen CLIP.

    Args:
        source: ``"glyphs"`` (embedded), a hub id such as ``"openai/clip-vit-base-patch32"``, or a local folder; CLIP and
            SigLIP families in the Hugging Face format. After the first download it works offline.
        revision: branch, tag or commit of a hub id.
        dtype: of the weights; float32 unless asked, whatever the checkpoint was saved in.
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

    name = str(source)
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
