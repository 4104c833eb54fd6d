"""One copy in memory of a CLIP model that several users need at the same time."""

from __future__ import annotations

from weakref import WeakValueDictionary

import torch

from apd.models import DualEncoder, load_clip

_HELD: WeakValueDictionary[str, DualEncoder] = WeakValueDictionary()


def shared_clip(source: str, *, device: str | torch.device = "cpu") -> DualEncoder:
    """Like `apd.load_clip`, but return the encoder that somebody in this process still holds, if there is one.

    Encoders are frozen and stateless, so they can be shared; moving one to ``device`` moves it for all its holders.

    Raises:
        InputError: see `apd.load_clip`.
    """
    encoder = _HELD.get(source)
    if encoder is None:
        encoder = _HELD[source] = load_clip(source)
    return encoder.to(device)
