"""Models on the Hugging Face hub: which commit, and what to do where there is none that can be read."""

from __future__ import annotations

from pathlib import Path

from apd.errors import InputError
from apd.models.checkpoint import WEIGHTS, how_to_convert
from apd.util.hub import is_switched_off
from apd.util.text import quoted

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def find_commit(hub_id: str, source: str, revision: str | None) -> str | None:
    """Return the commit of a hub model, having refused one without weights as safetensors there.

    The transformers library would ask a service on the hub to convert a pickle, and read what others proposed to the model's
    owner: weights that belong to no commit of the model, so that a run could not find them again.

    Args:
        hub_id: owner/name.
        source: how the user calls it.
        revision: what the user asked for, if anything.

    Raises:
        InputError: no safetensors; or they are not in the cache, and the hub is not reached.
    """
    from huggingface_hub import try_to_load_from_cache
    from transformers.utils.hub import cached_file, extract_commit_hash

    commit = extract_commit_hash(cached_file(hub_id, "config.json", revision=revision), None)
    offline = None
    for name in WEIGHTS:
        try:
            cached_file(hub_id, name, revision=commit or revision)
            return commit
        except OSError as error:
            offline = unreachable(source, error)
            if error.__cause__ is not None and offline is None:  # the file is not what is missing
                raise
    held = (try_to_load_from_cache(hub_id, name, revision=commit or revision) for name in _PICKLES)
    if offline is not None and not any(isinstance(path, str) for path in held):
        raise InputError(offline)
    folder = Path(hub_id).name
    at = f" --revision {quoted(revision)}" if revision else ""
    download = f"hf download {quoted(hub_id)}{at} --local-dir {quoted(folder)}"
    raise InputError(
        f"{source} has no {WEIGHTS[0]}; weights as a pickle (pytorch_model.bin) can run code when they are opened and are never "
        f"opened here. {how_to_convert(folder, download)}"
    )


def unreachable(source: str, error: BaseException) -> str | None:
    """Say what to do where a hub id is neither in the cache nor to be had; None for other errors."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, LocalEntryNotFoundError):
        cause = cause.__cause__
    if cause is None:
        return None
    why = "HF_HUB_OFFLINE is set: unset it" if is_switched_off() else "the hub is not reached: connect"
    return (
        f"No CLIP at {source!r}: it is not in the cache, and {why} for the first download (about 600 MB for a ViT-B), "
        "or give a local folder, or --model glyphs, which is embedded."
    )
