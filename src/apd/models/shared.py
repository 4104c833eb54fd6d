"""One copy in memory of a CLIP model, or of a prompted one, that several users need at the same time."""

from __future__ import annotations

from weakref import WeakValueDictionary

import torch

from apd.models import DualEncoder, load_clip
from apd.models.classifier import PromptedCLIP

_HELD: WeakValueDictionary[str, DualEncoder] = WeakValueDictionary()
_PROMPTED: WeakValueDictionary[str, PromptedCLIP] = WeakValueDictionary()


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


def share_classifier(source: str, classifier: PromptedCLIP) -> PromptedCLIP:
    """Let `shared_classifier` find a prompted CLIP by the name of its source, as long as somebody holds it; return it."""
    _PROMPTED[source] = classifier
    return classifier


def shared_classifier(source: str) -> PromptedCLIP | None:
    """Return the prompted CLIP that somebody in this process holds and has shared; None if there is none."""
    return _PROMPTED.get(source)
